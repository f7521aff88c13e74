"""The order in which sources take turns, so that after any number of samples each has had its share within one.

Unit m (from 1) of a source with share p of the samples has to be sample n (from 1) with (m - 1) / p < n < m / p + 1:
then the source has had more than n p - 1 and less than n p + 1 of the first n samples, for every n. Taking the
released unit with the earliest deadline keeps all these windows (Tijdeman, The chairman assignment problem, 1980; as
proportionate scheduling: Baruah, Cohen, Plaxton, Varvel, 1996). All numbers are whole, so nothing drifts.

The order is cut into frames, each of which is found without those before it. Units whose windows cross the border of
two frames are divided between them by a schedule that begins `reach` samples before the border, which is longer than
any window, and with the units of the earliest deadlines: it keeps every window that ends or begins beside the border.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

SMALLEST_SHARE = 1e-6  # of a source in the samples: a frame holds at least two of each source
SHORTEST_FRAME = 4096
FRAMES_KEPT = 4


@dataclass(frozen=True)
class Frame:
    """The sources of a run of samples, their places in their sources, and what each source has before and in it."""

    sources: np.ndarray  # [num_samples] int64
    places: np.ndarray  # [num_samples] int64
    before: tuple[int, ...]  # samples of each source before the frame
    positions: tuple[np.ndarray, ...]  # of each source's samples in the frame, ascending


class Proportions:
    """Samples 0, 1, ... of an endless order shared by sources in proportion to positive `weights`.

    A weight is the number that its decimal digits say: 0.1 is one tenth.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]
        multiple = lcm(*(weight.denominator for weight in exact))
        self._parts = [int(weight * multiple) for weight in exact]  # source j has parts[j] of every `whole` samples
        self._whole = sum(self._parts)
        self._reach = -(-self._whole // min(self._parts)) + 2
        self._frame_size = max(SHORTEST_FRAME, 2 * self._reach)
        self._frame = lru_cache(FRAMES_KEPT)(self._make_frame)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample, and how many samples of that source come before it; both [n] int64."""
        indices = np.asarray(indices, dtype=np.int64)
        sources, places = np.empty_like(indices), np.empty_like(indices)
        numbers, inside = np.divmod(indices, self._frame_size)
        for number in np.unique(numbers):
            here, frame = numbers == number, self._frame(int(number))
            sources[here], places[here] = frame.sources[inside[here]], frame.places[inside[here]]
        return sources, places

    def counts(self, num_samples: int) -> list[int]:
        """Return how many of the first `num_samples` samples each source has."""
        number, inside = divmod(num_samples, self._frame_size)
        frame = self._frame(number)
        pairs = zip(frame.before, frame.positions, strict=True)
        return [before + int(np.searchsorted(positions, inside)) for before, positions in pairs]

    def _make_frame(self, number: int) -> Frame:
        start, stop = number * self._frame_size, (number + 1) * self._frame_size
        before, after = self._counts_at(start), self._counts_at(stop)
        sources = np.array(self._schedule(start, stop, before, after), dtype=np.int64)
        places = np.empty_like(sources)
        positions = tuple(np.flatnonzero(sources == source) for source in range(len(before)))
        for count, here in zip(before, positions, strict=True):
            places[here] = count + np.arange(len(here))
        return Frame(sources, places, tuple(before), positions)

    def _counts_at(self, border: int) -> list[int]:
        """Return how many samples each source has before the border of two frames."""
        start = max(0, border - self._reach)
        counts = [start * part // self._whole for part in self._parts]
        unfinished = [source for source, part in enumerate(self._parts) if start * part % self._whole]
        unfinished.sort(key=lambda source: self._deadline(source, counts[source] + 1))
        for source in unfinished[: start - sum(counts)]:
            counts[source] += 1
        for source in self._schedule(start, border, counts):
            counts[source] += 1
        return counts

    def _deadline(self, source: int, unit: int) -> int:
        """Return the last sample, from 1, that may be this unit."""
        return -(-unit * self._whole // self._parts[source])

    def _schedule(self, start: int, stop: int, before: Sequence[int], after: Sequence[int] | None = None) -> list[int]:
        """Return the sources of samples start to stop - 1: of the released units, that with the earliest deadline.

        `before` are the samples of each source before `start`, `after` those that it has to have before `stop`.
        """
        counts, order = list(before), []
        released: list[tuple[int, int]] = []  # (deadline, source)
        waiting: list[tuple[int, int]] = []  # (first sample from 1, source)

        def wait(source: int) -> None:
            if after is None or counts[source] < after[source]:
                heapq.heappush(waiting, (counts[source] * self._whole // self._parts[source] + 1, source))

        for source in range(len(counts)):
            wait(source)
        for sample in range(start + 1, stop + 1):
            while waiting and waiting[0][0] <= sample:
                source = heapq.heappop(waiting)[1]
                deadline = self._deadline(source, counts[source] + 1)
                heapq.heappush(released, (deadline if after is None else min(deadline, stop), source))
            source = heapq.heappop(released)[1]
            order.append(source)
            counts[source] += 1
            wait(source)
        return order
