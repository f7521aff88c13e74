"""Several objectives: which evaluations no other beats in all of them, and how an engine sees them as one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hybridtron.composer.costs.cost import Cost
from hybridtron.composer.engines.discrete import Observation

AUGMENTATION = 0.05  # weight of the sum beside the smallest term, which keeps dominated patterns behind


def pareto_front(observations: Sequence[Observation], costs: Sequence[Cost]) -> list[int]:
    """Return indices of the patterns that no other equals or beats in score and every cost, cheapest first.

    They are in the order of the first cost, then of the next; of equal ones the first stays.
    """
    spent = [tuple(cost(o.pattern) for cost in costs) for o in observations]
    front: list[int] = []
    for i in sorted(range(len(observations)), key=lambda i: (spent[i], -observations[i].score)):
        mine, score = spent[i], observations[i].score
        if not any(
            observations[j].score >= score and all(theirs <= own for theirs, own in zip(spent[j], mine, strict=True))
            for j in front
        ):
            front.append(i)
    return front


def scalarised(
    observations: Sequence[Observation], costs: Sequence[Cost], generator: np.random.Generator
) -> list[Observation]:
    """Score and costs as one number for one proposal, with weights of its own: augmented Chebyshev (Knowles 2006).

    Each is scaled to what has been seen; one that is the same everywhere is left out. Weights are uniform over the
    simplex, so that many proposals spread along the front.
    """
    if not observations:
        return []
    weights = np.diff(np.concatenate([[0.0], np.sort(generator.random(len(costs))), [1.0]]))
    axes = [[o.score for o in observations], *([-cost(o.pattern) for o in observations] for cost in costs)]
    values = np.array(axes, float)  # [1 + costs, observations]
    spans = np.ptp(values, axis=1)
    units = (values - values.min(axis=1, keepdims=True)) / np.where(spans, spans, 1.0)[:, None]
    parts = (weights[:, None] * units)[spans > 0] if spans.any() else np.zeros_like(values)
    sums = parts.min(axis=0) + AUGMENTATION * parts.sum(axis=0)
    scale = float(weights[0] * (1 + AUGMENTATION) / (spans[0] or 1.0))  # of the score within the number, at most
    return [replace(o, score=float(value), error=scale * o.error) for o, value in zip(observations, sums, strict=True)]
