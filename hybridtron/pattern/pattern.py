"""A pattern and its canonical text."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from hybridtron.pattern.fold import fold

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_name(text: str) -> bool:
    """Return whether `text` is a valid block name."""
    return NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Pattern:
    """The block name of every layer, and `cuts`: the indices of the layers at which a new pipeline stage starts.

    `str(pattern)` is its canonical text: runs and repeated groups folded, equal under `parse`.
    """

    layers: tuple[str, ...]
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a pattern needs at least one layer")
        if any(a >= b for a, b in pairwise((0, *self.cuts, len(self.layers)))):
            raise ValueError(f"cuts {self.cuts} leave an empty stage in a pattern of {len(self.layers)} layers")

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return " | ".join(fold(stage) for stage in self.stages())

    def stages(self) -> list[tuple[str, ...]]:
        """Return the layers of each pipeline stage as written, in order; one stage if there is no cut."""
        return [self.layers[start:end] for start, end in pairwise((0, *self.cuts, len(self.layers)))]

    def counts(self) -> dict[str, int]:
        """Return the number of layers of each block, in order of first appearance."""
        return dict(Counter(self.layers))
