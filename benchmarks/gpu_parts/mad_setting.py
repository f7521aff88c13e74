"""One setting of MAD: the six cells of the grid in one pass, against one by one and a plain loop over models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from mad import LAYERS, train_seconds

from gpu_parts.rows import Row, attempted
from gpu_parts.timing import Budget, median, ratio

BATCH, REPEATS = 128, 5


def mad_rows(tiny: bool, device: torch.device, budget: Budget) -> Iterator[Row]:
    """Yield a row for each way to train the cells; the ratio is the stacked pass's speed over that way's."""
    for layers in (["mlp"],) if tiny else (LAYERS, ["mh-hyena", "swiglu", "mh-hyena", "moe-mlp"]):
        yield from attempted("MAD", " ".join(layers), partial(_rows, layers, tiny, device, budget))


def _rows(layers: list[str], tiny: bool, device: torch.device, budget: Budget) -> list[Row]:
    budget.require(10 if not tiny else 0)
    found = train_seconds(layers, 4 if tiny else BATCH, device.type, 1 if tiny else REPEATS)
    return [
        Row(
            "MAD",
            f"{' '.join(layers)}, a step of six cells, {way}",
            median(times),
            ratio=ratio(found["stacked"], times),
        )
        for way, times in found.items()
    ]
