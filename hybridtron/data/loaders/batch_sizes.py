"""The number of sequences in the global batch of every step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """`warmup` has (steps, sequences) of each stage before the global batch has `final` sequences."""

    final: int
    warmup: tuple[tuple[int, int], ...] = ()

    def span(self, step: int) -> tuple[int, int]:
        """Return the first sample of a step (from 0), which follows those of all earlier steps, and the batch size."""
        first = 0
        for steps, size in self.warmup:
            if step < steps:
                return first + step * size, size
            first, step = first + steps * size, step - steps
        return first + step * self.final, self.final

    def steps(self, samples: float) -> float:
        """Return the number of steps from the beginning, also of parts of one, that take so many samples."""
        first = 0
        for steps, size in self.warmup:
            if samples < steps * size:
                return first + samples / size
            first, samples = first + steps, samples - steps * size
        return first + samples / self.final

    def samples(self, steps: int) -> int:
        """Return the number of samples in so many steps from the beginning."""
        return self.span(steps)[0]
