"""What a pattern costs at a model's widths, and which evaluations no other beats in both score and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.config import CostConfig
from hybridtron.composer.nas.evaluators import require_blocks
from hybridtron.composer.nas.space import Pattern
from hybridtron.config.load import load
from hybridtron.training.config import RunConfig

AUGMENTATION = 0.05  # weight of the sum beside the smaller term, which keeps dominated patterns behind


@dataclass(frozen=True)
class Cost:
    """Cost of a pattern: the sum of those of its layers, by index of the block."""

    label: str
    layers: tuple[float, ...]

    def __call__(self, pattern: Pattern) -> float:
        return float(sum(self.layers[block] for block in pattern))


def read_cost(config: CostConfig, blocks: Sequence[str]) -> Cost:
    """Read the cost of each block from a run's config; raises UserError where it lacks one."""
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
    return [Observation(o.pattern, float(value), o.error) for o, value in zip(observations, values, strict=True)]


def _unit(values: np.ndarray) -> np.ndarray:
    span = np.ptp(values)
    return (values - values.min()) / span if span else np.zeros_like(values)
