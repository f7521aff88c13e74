"""The patterns that a search may try: blocks, a number of layers, fixed positions and constraints.

A pattern is a tuple of indices into `blocks`. What may follow depends only on the last block, the length of its run and
how often each constrained block has been used, so that patterns are counted, enumerated and drawn uniformly by dynamic
programming, however few of them the constraints leave. Uses of many constrained blocks multiply: more than MAX_STATES
states are refused.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, combinations
from typing import NamedTuple

import numpy as np

from hybridtron.errors import UserError

MAX_STATES = 200_000  # a few seconds of counting
COORDINATE_BITS = 53  # of a float's mantissa

Pattern = tuple[int, ...]
Uses = tuple[int, ...]  # of the counted blocks
State = tuple[int, int, Uses, Pattern]  # last block (-1: none), length of its run, uses; the last is a subclass's own


class Limit(NamedTuple):
    """The most that the layers of a pattern may cost together."""

    costs: tuple[float, ...]  # of a layer, by block; at least 0
    most: float

    def cost(self, counts: Iterable[int]) -> float:
        """Return what so many layers of each block cost."""
        return math.fsum(n * cost for n, cost in zip(counts, self.costs, strict=True))


@dataclass(frozen=True, eq=False)
class Space:
    """`fixed` maps positions to blocks; the other fields are constraints, by index of the block.

    It remembers what it has counted: equal spaces each count anew.

    Raises UserError on counting, and so on all that needs it, where that would take more than MAX_STATES states.
    """

    blocks: tuple[str, ...]
    layers: int
    fixed: Mapping[int, int] = field(default_factory=dict)
    at_most: Mapping[int, int] = field(default_factory=dict)
    at_least: Mapping[int, int] = field(default_factory=dict)
    longest_run: Mapping[int, int] = field(default_factory=dict)
    never_first: frozenset[int] = frozenset()
    never_last: frozenset[int] = frozenset()
    never_adjacent: frozenset[tuple[int, int]] = frozenset()  # (block, the one after it)
    limits: tuple[Limit, ...] = ()

    @cached_property
    def size(self) -> int:
        """Count the patterns."""
        return self._completions(0, self._start)

    def names(self, pattern: Pattern) -> tuple[str, ...]:
        return tuple(self.blocks[block] for block in pattern)

    def indices(self, names: Sequence[str]) -> Pattern:
        return tuple(self.blocks.index(name) for name in names)

    def allows(self, pattern: Pattern) -> bool:
        state = self._after(pattern) if len(pattern) == self.layers else None
        return state is not None and self._may_end(state)

    def choices(self, prefix: Pattern) -> dict[int, int]:
        """Count, for each block that may follow the prefix, the patterns that then remain; empty for none."""
        state = self._after(prefix)
        return {} if state is None else {b: count for b, (count, _) in self._options(len(prefix), state).items()}

    def enumerate(self, prefix: Pattern = ()) -> Iterator[Pattern]:
        """Yield all patterns, in the order of their indices."""
        if len(prefix) == self.layers:
            yield prefix
            return
        for block in self.choices(prefix):
            yield from self.enumerate((*prefix, block))

    def at(self, coordinates: Sequence[float]) -> Pattern:
        """Return the pattern at a point of the unit cube [layers]; uniform points give uniform patterns."""
        pattern: Pattern = ()
        state = self._start
        for position, coordinate in enumerate(coordinates[: self.layers]):
            options = self._options(position, state)
            blocks, shares = list(options), list(accumulate(count for count, _ in options.values()))
            share = int(coordinate * 2**COORDINATE_BITS) * shares[-1] >> COORDINATE_BITS  # exact: counts exceed floats
            block = blocks[min(bisect_right(shares, share), len(blocks) - 1)]
            pattern, state = (*pattern, block), options[block][1]
        return pattern

    def draw(self, generator: np.random.Generator) -> Pattern:
        """Draw one pattern uniformly."""
        return self.at(generator.random(self.layers).tolist())

    def neighbours(self, pattern: Pattern) -> list[Pattern]:
        """Return the patterns that differ in one layer, or by two layers exchanged."""
        changed = [
            (*pattern[:i], block, *pattern[i + 1 :])
            for i in range(self.layers)
            for block in range(len(self.blocks))
            if block != pattern[i] and i not in self.fixed
        ]
        for i, j in combinations([i for i in range(self.layers) if i not in self.fixed], 2):
            if pattern[i] != pattern[j]:
                changed.append((*pattern[:i], pattern[j], *pattern[i + 1 : j], pattern[i], *pattern[j + 1 :]))
        return [candidate for candidate in dict.fromkeys(changed) if self.allows(candidate)]

    @property
    def _start(self) -> State:
        return -1, 0, (0,) * len(self._counted), ()

    def _after(self, prefix: Pattern) -> State | None:
        """Return the state after a prefix; None where it is not allowed."""
        state: State | None = self._start
        for position, block in enumerate(prefix):
            state = None if state is None else self._next(position, state, block)
        return state

    def _options(self, position: int, state: State) -> dict[int, tuple[int, State]]:
        """Return the blocks that may follow, each with the patterns that then remain and the state after it."""
        found = {}
        for block in range(len(self.blocks)):
            following = self._next(position, state, block)
            if following is not None and (remaining := self._completions(position + 1, following)):
                found[block] = (remaining, following)
        return found

    @cached_property
    def _counted(self) -> tuple[int, ...]:
        return tuple(sorted({*self.at_most, *self.at_least, *range(len(self.blocks) if self.limits else 0)}))

    def _next(self, position: int, state: State, block: int) -> State | None:
        """Return the state after `block` at `position`; None where that is not allowed."""
        last, run, uses, own = state
        run = run + 1 if block == last else 1
        if (
            self.fixed.get(position, block) != block
            or (position == 0 and block in self.never_first)
            or (position == self.layers - 1 and block in self.never_last)
            or (last, block) in self.never_adjacent
            or run > self.longest_run.get(block, self.layers)
        ):
            return None
        used = self._use(uses, block)
        return None if used is None else (block, run if block in self.longest_run else 1, used, own)

    def _use(self, uses: Uses, block: int) -> Uses | None:
        """Return the uses with one more of `block`; None where that is too many, or costs more than a limit."""
        if block not in self._counted:
            return uses
        place = self._counted.index(block)
        count = uses[place] + 1
        if count > self.at_most.get(block, count):
            return None
        if block not in self.at_most and not self.limits:
            count = min(count, self.at_least[block])  # more than enough is all the same
        used = (*uses[:place], count, *uses[place + 1 :])
        return used if all(limit.cost(used) <= limit.most for limit in self.limits) else None

    def _missing(self, uses: Uses) -> int:
        """Count the layers that `at_least` still requires."""
        pairs = zip(self._counted, uses, strict=True)
        return sum(max(0, self.at_least.get(block, 0) - count) for block, count in pairs)

    def _may_end(self, state: State) -> bool:
        """Return whether a pattern of all layers may leave this state."""
        return not self._missing(state[2])

    @cached_property
    def _memory(self) -> dict[tuple[int, State], int]:
        """Hold the counts of `_completions`."""
        if (states := self._states(self.layers)) > MAX_STATES:
            counts = {"at_most": self.at_most, "at_least": self.at_least, "longest_run": self.longest_run}
            named = [
                f"{key} ({', '.join(f'{self.blocks[block]} {count}' for block, count in sorted(limits.items()))})"
                for key, limits in counts.items()
                if limits
            ]
            less = f", or fewer blocks or smaller numbers in {' and '.join(named)}" if named else " or blocks"
            raise UserError(
                f"space: to count its patterns takes up to {states:,} states; expected at most {MAX_STATES:,}: "
                f"fewer layers than {self.layers}{less}"
            )
        return {}

    def _states(self, layers: int) -> int:
        """Return an upper bound of the number of states after 1 to `layers` layers."""
        ends = sum(min(self.longest_run.get(block, 1), layers) for block in range(len(self.blocks)))
        ways = [1] + [0] * layers  # of uses that add up to the index
        for block in self._counted:
            most = self.at_most.get(block, layers if self.limits else self.at_least.get(block, 0))
            sums = [0, *accumulate(ways)]
            ways = [sums[total + 1] - sums[max(0, total - most)] for total in range(layers + 1)]
        by_depth = list(accumulate(ways))[1:]
        if self.limits or self.at_most.keys() == set(range(len(self.blocks))):
            by_depth = ways[1:]  # every layer is counted
        return ends * sum(by_depth)

    def _completions(self, position: int, state: State) -> int:
        """Count the ways to fill the positions from this one on."""
        if position == self.layers:
            return int(self._may_end(state))
        key = (position, state)
        if key not in self._memory:
            self._memory[key] = sum(count for count, _ in self._options(position, state).values())
        return self._memory[key]
