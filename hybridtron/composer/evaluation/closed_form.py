"""A closed-form objective whose optimum is known, to compare engines on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hybridtron.composer.space.space import Pattern


@dataclass(frozen=True)
class Chain:
    """Each layer prefers some blocks, and so does each pair of neighbours; scores run from 0, worst, to 1, best.

    Preferences are normal, of standard deviation 1 for a layer and `coupling` for a pair. The optimum is found by
    dynamic programming.
    """

    layers: int
    blocks: int
    instance: int
    coupling: float = 1.0
    noise: float = 0.0

    @cached_property
    def _preferences(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([self.instance, self.layers, self.blocks])
        fields = draw.normal(size=(self.layers, self.blocks))
        return fields, self.coupling * draw.normal(size=(self.layers - 1, self.blocks, self.blocks))

    def _raw(self, pattern: Pattern) -> float:
        fields, pairs = self._preferences
        own = sum(fields[i, block] for i, block in enumerate(pattern))
        return float(own + sum(pairs[i, pattern[i], pattern[i + 1]] for i in range(self.layers - 1)))

    def _extreme(self, sign: int) -> Pattern:
        fields, pairs = self._preferences
        value, back = sign * fields[0], []
        for i in range(1, self.layers):
            ways = value[:, None] + sign * pairs[i - 1]  # [before, here]
            back.append(ways.argmax(axis=0))
            value = ways.max(axis=0) + sign * fields[i]
        path = [int(value.argmax())]
        for step in reversed(back):
            path.append(int(step[path[-1]]))
        return tuple(reversed(path))

    @cached_property
    def optimum(self) -> Pattern:
        return self._extreme(1)

    @cached_property
    def _range(self) -> tuple[float, float]:
        return self._raw(self._extreme(-1)), self._raw(self.optimum)

    def __call__(self, pattern: Pattern, seed: int = 0) -> float:
        low, high = self._range
        score = (self._raw(pattern) - low) / (high - low) if high > low else 1.0
        if self.noise:
            digest = hashlib.sha256(f"{self.instance}:{pattern}:{seed}".encode()).digest()
            score += self.noise * np.random.default_rng(int.from_bytes(digest[:8], "big")).normal()
        return float(score)
