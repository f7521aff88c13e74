"""Training steps of a slice in bf16 with keys that make a step faster or smaller, each beside the step without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from gpu_parts.families import SLICES, Slice, run_config
from gpu_parts.own_stack import build_own, train_step
from gpu_parts.rows import Row, attempted
from gpu_parts.slices import REPEATS, SEQ_LENS, free, label_of, one_process, row_of
from gpu_parts.timing import Budget, interleaved, median, ratio
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.model.compiling import compile_layers
from hybridtron.training.build import choose_backend
from hybridtron.training.config import RunConfig


class Case(NamedTuple):
    """Keys of the sections of a run, and the seconds that a row may take before its steps count."""

    part: Slice
    seq_len: int
    keys: Mapping[str, Mapping[str, Any]]
    seconds: float = 5

    @property
    def label(self) -> str:
        named = [f"{key} {str(value).lower()}" for section in self.keys.values() for key, value in section.items()]
        return ", ".join([label_of(self.part, "bf16", self.seq_len), *named])


HYBRID_7B, HYBRID_1B, *_ = SLICES
CASES = [  # those last that may leave a device unusable
    Case(HYBRID_7B, 8192, {"parallel": {"recompute": "full"}}),
    Case(HYBRID_7B, 8192, {"parallel": {"cpu_offload_layers": 4}}),
    Case(HYBRID_7B, 4096, {"model": {"backend": "megatron"}}),
    Case(HYBRID_7B, 4096, {"train": {"compile": True}}, seconds=60),
    Case(HYBRID_1B, 4096, {"train": {"cuda_graphs": True}}),
]


def key_rows(quick: bool, tiny: bool, budget: Budget) -> Iterator[Row]:
    """Yield a row for each case: steps with and without the keys in turn; the ratio is the speed with over without."""
    cases = [CASES[-1]._replace(seq_len=32)] if tiny else CASES[: 1 if quick else None]
    with one_process() as context:
        for case in cases:
            yield from attempted("keys", case.label, partial(_row, case, tiny, context, budget))
            free()


def _row(case: Case, tiny: bool, context: ParallelContext, budget: Budget) -> list[Row]:
    budget.require(case.seconds)
    without = run_config(case.part, case.seq_len, 1 if tiny else SEQ_LENS[case.seq_len], {"format": "bf16"}, tiny)
    config = _changed(without, case.keys)
    kind = context.device.type
    if "model" in case.keys and choose_backend(config, kind) == choose_backend(without, kind):
        raise RuntimeError("auto takes this backend too")
    engine = build_own(config, context)
    if config.train.compile:
        compile_layers(engine.chunks.chunks, context.device)
    steps = {"with": train_step(engine, config)}
    repeats, warmup = (1, 1) if tiny else (REPEATS, 3)
    timed = partial(interleaved, steps, context.device, repeats, budget, warmup=warmup)
    row = row_of("keys", case.label, config, "bf16", median(timed()["with"]), context.device)  # its memory, alone
    steps["without"] = train_step(build_own(without, context), without)
    found = timed()
    if engine.recorded is not None and not engine.recorded.replays:
        raise RuntimeError("no step was replayed")
    return [row._replace(ratio=ratio(found["with"], found["without"]))]


def _changed(config: RunConfig, keys: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in keys.items()}
    return config.model_copy(update=sections)
