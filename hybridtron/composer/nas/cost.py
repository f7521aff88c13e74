"""What a pattern costs at a model's widths, and which evaluations no other beats in both score and cost."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.config import CostConfig
from hybridtron.composer.nas.evaluators import require_blocks
from hybridtron.composer.nas.space import Pattern, Space
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.files import read_plain
from hybridtron.training.config import RunConfig

WORDS_OF_MEASURED = {
    "train_ms": "milliseconds of a training step",
    "prefill_ms": "milliseconds of reading the prompt",
    "decode_ms": "milliseconds of the next token",
    "state_bytes": "bytes of state per sequence",
}
AUGMENTATION = 0.05  # weight of the sum beside the smaller term, which keeps dominated patterns behind


@dataclass(frozen=True)
class Cost:
    """Cost of a pattern: the sum of those of its layers, by index of the block."""

    label: str
    layers: tuple[float, ...]

    def __call__(self, pattern: Pattern) -> float:
        return float(sum(self.layers[block] for block in pattern))


def read_cost(config: CostConfig, blocks: Sequence[str]) -> Cost:
    """Read the cost of each block from a run's config or a table; raises UserError where it lacks one."""
    if config.table is not None:
        return _read_table(config, Path(config.table), blocks)
    assert config.model is not None
    run = load(config.model, config.overrides, RunConfig)
    seq_len = config.seq_len or run.data.seq_len
    require_blocks(f"cost.model = {config.model}", blocks, run.model.blocks)
    measured = [run.model.blocks[name] for name in blocks]
    layers, at = f"the layers of {run.name}", f" at {seq_len:,} tokens"
    by_measure: dict[str, tuple[str, list[float]]] = {
        "flops": (f"forward FLOPs per token of {layers}{at}", [b.flops(seq_len) / seq_len for b in measured]),
        "parameters": (f"parameters of {layers}", [b.parameters() for b in measured]),
        "cache": (f"elements of cache of {layers}{at}", [b.state_size(seq_len) for b in measured]),
    }
    label, costs = by_measure[config.measure]
    return Cost(label, tuple(float(cost) for cost in costs))


def _read_table(config: CostConfig, path: Path, blocks: Sequence[str]) -> Cost:
    """Read measured costs of layers at one length and batch size."""
    place = f"cost.table = {path}"
    try:
        rows = list(csv.DictReader(read_plain(path).decode().splitlines()))
    except UnicodeDecodeError:
        raise UserError(f"{place}: is no text; expected layers.csv of hybridtron efficiency") from None
    missing = {"layer", "length", "batch", config.measure} - (rows[0].keys() if rows else set())
    if missing:
        raise UserError(f"{place}: has no column {sorted(missing)[0]}; expected layers.csv of hybridtron efficiency")
    try:
        measured = [((int(r["length"]), int(r["batch"])), r["layer"], float(r[config.measure])) for r in rows]
    except (TypeError, ValueError):
        raise UserError(
            f"{place}: holds a word in place of a number; expected layers.csv of hybridtron efficiency"
        ) from None
    settings = sorted({setting for setting, _, _ in measured})
    lengths = [length for length, batch in settings if batch == config.batch]
    seq_len = config.seq_len or (lengths[0] if len(lengths) == 1 else None)
    if (seq_len, config.batch) not in settings:
        known = ", ".join(f"{length} x {batch}" for length, batch in settings)
        raise UserError(
            f"cost.seq_len = {seq_len}, cost.batch = {config.batch}: not measured in {path}; expected one of {known}"
        )
    costs: dict[str, list[float]] = {}
    for setting, layer, cost in measured:
        if setting == (seq_len, config.batch):
            costs.setdefault(layer, []).append(cost)
    require_blocks(place, blocks, costs)
    for name in blocks:
        if len(costs[name]) > 1:
            raise UserError(
                f"{place}: has {len(costs[name])} layers of the name {name}; expected one, as models of one width have"
            )
        if not 0 <= costs[name][0] < math.inf:
            raise UserError(f"{place}: {config.measure} of {name} is {costs[name][0]}; expected a number of at least 0")
    words = WORDS_OF_MEASURED[config.measure]
    label = f"{words} at {seq_len:,} tokens, batch {config.batch}, of {path.name}"
    return Cost(label, tuple(costs[name][0] for name in blocks))


def limited(space: Space, cost: Cost, limit: float) -> Space:
    """Return the patterns of a space that cost at most `limit`; raises UserError where there are none."""
    within = replace(space, costs=cost.layers, limit=limit)
    if not within.size:
        least = f"{space.layers} of the cheapest layer cost {space.layers * min(cost.layers):g}, {cost.label}"
        raise UserError(f"cost.limit = {limit:g}: no pattern of the space costs so little; expected more: {least}")
    return within


def pareto_front(observations: Sequence[Observation], cost: Cost) -> list[int]:
    """Return indices of the patterns that no other beats in both score and cost, cheapest first."""
    order = sorted(range(len(observations)), key=lambda i: (cost(observations[i].pattern), -observations[i].score))
    front: list[int] = []
    for i in order:
        if not front or observations[i].score > observations[front[-1]].score:
            front.append(i)
    return front


def scalarised(observations: Sequence[Observation], cost: Cost, generator: np.random.Generator) -> list[Observation]:
    """Score and cost as one number for one proposal, with a weight of its own: augmented Chebyshev (Knowles 2006).

    Both are scaled to what has been seen; over many proposals the weights spread along the front.
    """
    if not observations:
        return []
    weight = generator.random()
    score = _unit(np.array([o.score for o in observations]))
    saving = _unit(np.array([-cost(o.pattern) for o in observations]))
    parts = np.stack([weight * score, (1 - weight) * saving])
    values = parts.min(axis=0) + AUGMENTATION * parts.sum(axis=0)
    span = float(np.ptp([o.score for o in observations])) or 1.0
    scale = weight * (1 + AUGMENTATION) / span  # of the score within the number, at most
    return [
        replace(o, score=float(value), error=scale * o.error) for o, value in zip(observations, values, strict=True)
    ]


def _unit(values: np.ndarray) -> np.ndarray:
    span = np.ptp(values)
    return (values - values.min()) / span if span else np.zeros_like(values)
