"""What a pattern costs at a model's widths, and the patterns within limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridtron.accounting.describe import FORMAT_BYTES
from hybridtron.accounting.layer_table import read_layer_table
from hybridtron.composer.costs.config import MEASURED, CostConfig, Measure
from hybridtron.composer.evaluation.evaluators import require_blocks
from hybridtron.composer.space.space import Limit, Pattern, Space
from hybridtron.config.load import load
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

WORDS_OF_MEASURED = {
    "train_ms": "milliseconds of a training step",
    "prefill_ms": "milliseconds of reading the prompt",
    "decode_ms": "milliseconds of the next token",
    "state_bytes": "bytes of state per sequence",
}
HEADINGS = {  # of tables
    "flops": "FLOPs per token",
    "parameters": "parameters",
    "cache": "elements of cache",
    "cache_bytes": "bytes of cache",
    "state_bytes": "bytes of state",
    "train_ms": "ms of a training step",
    "prefill_ms": "ms of the prompt",
    "decode_ms": "ms of the next token",
}


@dataclass(frozen=True)
class Cost:
    """Cost of a pattern: the sum of those of its layers, by index of the block, and of `positions`, what the residual
    topology adds at the place of each layer. `limit` is the most that a pattern may cost."""

    label: str
    layers: tuple[float, ...]
    positions: tuple[float, ...] = ()
    name: str = ""  # MEASURE or MEASURE@TOKENS
    is_objective: bool = True
    limit: float = math.inf
    limit_key: str = "cost.limit"

    def __call__(self, pattern: Pattern) -> float:
        return float(sum(self.layers[block] for block in pattern) + sum(self.positions[: len(pattern)]))

    @property
    def heading(self) -> str:
        """Return the title of its column, with the tokens where the config names them."""
        measure, _, tokens = self.name.partition("@")
        return HEADINGS.get(measure, self.label) + (f" at {int(tokens):,}" if tokens else "")

    @property
    def is_limited(self) -> bool:
        return self.limit < math.inf

    @property
    def is_time(self) -> bool:
        return self.name.partition("@")[0].endswith("_ms")

    @property
    def left(self) -> float:
        """Return the part of the limit that is left to the layers of a whole pattern."""
        return self.limit - sum(self.positions)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for two searches to share a folder."""
        limit = {"limit": self.left} if self.is_limited else {}
        both = {"objective": True} if limit and self.is_objective else {}
        return {"label": self.label, "layers": list(self.layers), **limit, **both}


def read_costs(config: CostConfig | None, blocks: Sequence[str], layers: int) -> tuple[Cost, ...]:
    """Read the costs of blocks and of so many layers from a run's config or a table.

    Raises UserError where it lacks a block.
    """
    if config is None:
        return ()
    run = load(config.model, config.overrides, RunConfig) if config.model is not None else None
    limits: Mapping[str, float | None] = config.limits if config.measure is None else {config.measure: config.limit}
    found = []
    for measure in config.measures:
        if measure.name in MEASURED:
            cost = _read_measured(config, measure, blocks)
        else:
            assert run is not None
            require_blocks(f"cost.model = {config.model}", blocks, run.model.blocks)
            cost = _compute(run, measure, measure.tokens or config.seq_len or run.data.seq_len, blocks, layers)
        limit = limits.get(measure.text)
        wanted = measure.text in config.objectives or limit is None
        key = "cost.limit" if config.measure else f"cost.limits.{measure.text}"
        most = math.inf if limit is None else float(limit)
        found.append(replace(cost, name=measure.text, is_objective=wanted, limit=most, limit_key=key))
    return tuple(found)


def _compute(run: RunConfig, measure: Measure, seq_len: int, blocks: Sequence[str], layers: int) -> Cost:
    """Count a cost of each block at a run's widths."""
    model, residual = run.model, run.model.residual
    counted = [model.blocks[name] for name in blocks]
    words, at = f"the layers of {run.name}", f" at {seq_len:,} tokens"
    if measure.name == "flops":
        label, costs = f"forward FLOPs per token of {words}{at}", [b.flops(seq_len) / seq_len for b in counted]
        positions = [residual.flops(model, i, seq_len) / seq_len for i in range(layers)]
    elif measure.name == "parameters":  # without norms, as those of the blocks are
        label, costs = f"parameters of {words}", [b.parameters() for b in counted]
        weights = [residual.tensors(model, i) for i in range(layers)]
        positions = [sum(spec.numel for name, spec in own.items() if name != "norm.weight") for own in weights]
    elif measure.name == "cache":
        label, costs = f"elements of cache of {words}{at}", [b.state_size(seq_len) for b in counted]
        positions = []
    else:
        width = FORMAT_BYTES[run.precision.parameter_format]
        label, costs = f"bytes of cache of {words}{at}", [b.state_bytes(seq_len, width) for b in counted]
        positions = []
    return Cost(label, tuple(map(float, costs)), tuple(map(float, positions)) if any(positions) else ())


def _read_measured(config: CostConfig, measure: Measure, blocks: Sequence[str]) -> Cost:
    """Read measured costs of layers at one length and batch size."""
    assert config.table is not None
    path, name = Path(config.table), measure.name
    place = f"cost.table = {path}"
    rows = read_layer_table(place, path, [name])
    settings = sorted({(row.length, row.batch) for row in rows})
    lengths = [length for length, batch in settings if batch == config.batch]
    seq_len = measure.tokens or config.seq_len or (lengths[0] if len(lengths) == 1 else None)
    if (seq_len, config.batch) not in settings:
        known = ", ".join(f"{length} x {batch}" for length, batch in settings)
        if seq_len is None and lengths:
            raise UserError(
                f"cost.seq_len: is needed with several lengths in {path}; expected {one_of(None, map(str, lengths))}"
            )
        which = f"cost.{measure.key} = {measure.text}, " if measure.tokens else f"cost.seq_len = {seq_len}, "
        which = "" if seq_len is None else which
        raise UserError(f"{which}cost.batch = {config.batch}: not measured in {path}; expected one of {known}")
    costs: dict[str, list[float]] = {}
    for row in rows:
        if (row.length, row.batch) == (seq_len, config.batch):
            costs.setdefault(row.layer, []).append(row.values[name])
    require_blocks(place, blocks, costs)
    for block in blocks:
        if len(costs[block]) > 1:
            raise UserError(
                f"{place}: has {len(costs[block])} layers of the name {block}; expected one, as models of one width "
                "have"
            )
        if not 0 <= costs[block][0] < math.inf:
            raise UserError(f"{place}: {name} of {block} is {costs[block][0]}; expected a number of at least 0")
    label = f"{WORDS_OF_MEASURED[name]} at {seq_len:,} tokens, batch {config.batch}, of {path.name}"
    return Cost(label, tuple(costs[block][0] for block in blocks))


def limited(space: Space, costs: Sequence[Cost]) -> Space:
    """Return the patterns of a space that keep the limits of all costs; raises UserError where there are none."""
    bounded = [cost for cost in costs if cost.is_limited]
    if not bounded:
        return space
    within = replace(space, limits=tuple(Limit(cost.layers, cost.left) for cost in bounded))
    if within.size:
        return within
    for cost in bounded:
        if not replace(space, limits=(Limit(cost.layers, cost.left),)).size:
            cheapest = space.layers * min(cost.layers) + sum(cost.positions)
            raise UserError(
                f"{cost.limit_key} = {cost.limit:g}: no pattern of the space costs so little; expected more: "
                f"{space.layers} of the cheapest layer cost {cheapest:g}, {cost.label}"
            )
    listed = ", ".join(f"{cost.name} {cost.limit:g}" for cost in bounded)
    raise UserError(
        f"cost.limits = {listed}: no pattern of the space keeps all of them, though each alone leaves some; expected "
        "larger ones"
    )
