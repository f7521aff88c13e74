"""The time of a pipeline's stages, from the table of measured layers that `hybridtron efficiency --by-block` writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from hybridtron.accounting.describe import describe
from hybridtron.accounting.layer_table import ENDS, PASSES, read_layer_table
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.stage import Stage, balanced_cuts, mtp_flops, stage_costs
from hybridtron.pattern import Pattern
from hybridtron.training.config import RunConfig

BETTER = 0.99  # of the busiest process's time: cuts that save less are not named


@dataclass(frozen=True)
class TimeModel:
    """Milliseconds of the forward and backward passes of one micro-batch on each pipeline rank, without communication
    and optimizer, and the seconds of a step that follow. `pattern` has cuts that balance these times better than the
    run's; None where none do."""

    table: str
    stages_ms: list[float]
    step_seconds: float
    pattern: str | None
    remarks: list[str]  # what was not measured as it is needed


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of the passes of one micro-batch on one device: of each layer, the embedding and the output.

    `remarks` tells what was not measured as it is needed.
    """

    layers: list[float]
    first: float
    last: float
    remarks: list[str]

    def of(self, stage: Stage) -> float:
        """Return those of a stage."""
        ends = self.first * stage.is_first + self.last * stage.is_last
        return sum(self.layers[stage.start : stage.stop]) + ends


def time_model(config: RunConfig, path: Path, stages: Sequence[Stage], micro_batches: int) -> TimeModel:
    """Work out what the stages of a resolved config take; tensor and context parallelism are taken to divide it evenly.

    Raises UserError where the table has no layer of the model.
    """
    parallel = config.parallel
    times = read_layer_times(config, path)
    share = 1 / (parallel.tensor * parallel.context)

    def by_rank(some: Sequence[Stage]) -> list[float]:
        return [share * sum(map(times.of, some[rank :: parallel.pipeline])) for rank in range(parallel.pipeline)]

    stages_ms = by_rank(stages)
    waiting = (parallel.pipeline - 1) / parallel.virtual_pipeline
    names = config.model.layer_names
    cuts = balanced_cuts(times.layers, len(stages), times.first, times.last)
    bounds = pairwise((0, *cuts, len(names)))
    other = [Stage(index, len(stages), start, stop) for index, (start, stop) in enumerate(bounds)]
    better = len(stages) > 1 and max(by_rank(other)) < BETTER * max(stages_ms)
    return TimeModel(
        table=str(path),
        stages_ms=stages_ms,
        step_seconds=max(stages_ms) * (micro_batches + waiting) / 1000,
        pattern=str(Pattern(tuple(names), tuple(cuts))) if better else None,
        remarks=times.remarks,
    )


def read_layer_times(config: RunConfig, path: Path) -> LayerTimes:
    """Read the times of a model's layers; what the table lacks follows from FLOPs, with a remark."""
    model, seq_len = config.model, config.data.seq_len
    table, account = _Table(path, seq_len, config.train.micro_batch_size), describe(model, seq_len)
    end = len(model.layer_names)
    found: list[float | None] = []
    for index, layer in enumerate(account.layers):
        flops = partial(_flops, model, Stage(1, 3, index, index + 1))
        found.append(table.milliseconds(layer.block, layer.parameters, flops))
    costs = [_flops(model, Stage(1, 3, index, index + 1), seq_len) for index in range(end)]
    pairs = [(ms, cost) for ms, cost in zip(found, costs, strict=True) if ms is not None]
    if not pairs:
        blocks, listed = ", ".join(dict.fromkeys(model.layer_names)), ", ".join({row.layer: 0 for row in table.rows})
        raise UserError(
            f"table {path}: has no layer of {config.name} at its widths; expected {blocks}; it has {listed or 'none'}"
        )
    rate = sum(ms for ms, _ in pairs) / sum(cost for _, cost in pairs)  # milliseconds by FLOPs of one sequence
    layers = [rate * cost if ms is None else ms for ms, cost in zip(found, costs, strict=True)]
    lacking = {name: 0 for name, ms in zip(model.layer_names, found, strict=True) if ms is None}

    ends, outside = Stage(0, 1, end, end), account.total - account.mtp - sum(each.parameters for each in account.layers)
    ends_ms = table.milliseconds(ENDS, outside, lambda tokens: _flops(model, ends, tokens) - mtp_flops(model, tokens))
    if ends_ms is None:
        lacking[ENDS] = 0
    else:
        rate = ends_ms / (_flops(model, ends, seq_len) - mtp_flops(model, seq_len))
    first, last = (rate * _flops(model, Stage(index, 2, end, end), seq_len) for index in (0, 1))
    remarks = [
        f"{name}: not in the table at this width; by FLOPs, at the rate of the layers that are" for name in lacking
    ]
    if model.mtp is not None:
        remarks.append("multi-token prediction: not in the table; by FLOPs, at the rate of the output projection")
    return LayerTimes(layers, first, last, [*table.remarks, *remarks])


def _flops(model: ModelConfig, stage: Stage, tokens: int) -> int:
    """Count the forward FLOPs of a stage for one sequence of so many tokens."""
    return stage_costs(model, [stage], tokens)[0]


class _Table:
    """The rows of a table, asked for layers at one length and batch size; `remarks` tells what they lacked."""

    def __init__(self, path: Path, seq_len: int, batch: int) -> None:
        self.seq_len, self.batch = seq_len, batch
        self.rows = read_layer_table(f"table {path}", path, ["parameters"], first_of=[PASSES, "train_ms"])
        self.column = PASSES if PASSES in self.rows[0].values else "train_ms"
        lacks = f"{PASSES} is not in the table: train_ms, with the optimizer's part, stands for it"
        self.remarks = dict.fromkeys([lacks] if self.column != PASSES else [])

    def milliseconds(self, layer: str, parameters: int, flops: Callable[[int], int]) -> float | None:
        """Return the time of a layer of this size; None where it was not measured.

        One that was measured at another length or batch size is scaled by its FLOPs.
        """
        fitting = [row for row in self.rows if row.layer == layer and row.values["parameters"] == parameters]
        if not fitting:
            return None
        row = min(fitting, key=lambda row: (abs(math.log(row.length / self.seq_len)), abs(row.batch - self.batch)))
        if (row.length, row.batch) == (self.seq_len, self.batch):
            return row.values[self.column]
        measured, wanted = f"{row.length} x {row.batch}", f"{self.seq_len} x {self.batch}"
        self.remarks[f"{layer}: measured at {measured}; scaled by FLOPs to {wanted}"] = None
        factor = flops(self.seq_len) * self.batch / (flops(row.length) * row.batch)
        return row.values[self.column] * factor
