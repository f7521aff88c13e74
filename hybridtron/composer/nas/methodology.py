"""One-shot and incremental search: which space each step searches, given the pattern of the step before.

Every step allows only what later steps can complete, so that no search ends in a dead end: a space is either refused
before its first step or searched to its last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from hybridtron.composer.nas.config import MethodologyConfig
from hybridtron.composer.space.space import Pattern, Space, State, Uses
from hybridtron.errors import UserError

Half = tuple[int, int]  # its innermost block (-1: none) and the length of that block's run


def num_steps(method: MethodologyConfig, layers: int) -> int:
    return 1 if method.step_layers is None else layers // method.step_layers


@lru_cache(maxsize=64)  # every look at a search asks for its steps' spaces, which remember what they have counted
def step_space(method: MethodologyConfig, whole: Space, step: int, found: Pattern) -> Space:
    """Build the space of a step (from 0) around `found`, the pattern that the step before returned.

    Constraints hold at every depth, but `at_least` only as far as the layers still to come cannot make up for it, and
    `never_last` only where the last layer is final. Raises UserError where nothing can be built around `found`.
    """
    if method.step_layers is None:
        return whole
    layers = method.step_layers * (step + 1)
    given: dict[str, Any] = {f.name: getattr(whole, f.name) for f in fields(whole)} | {"layers": layers}
    space: Space
    if method.type == "end_incremental":
        given["fixed"] = {**whole.fixed, **dict(enumerate(found))}
        if layers < whole.layers:
            given["never_last"] = frozenset()
        space = _Beginning(**given, whole=whole)
    else:
        half = len(found) // 2
        given["fixed"] = dict([*enumerate(found[:half]), *enumerate(found[half:], layers - len(found) + half)])
        space = _Shell(**given, step_layers=method.step_layers, final_layers=whole.layers)
    if not space.size:
        around = f" around {' '.join(whole.names(found))!r}" if found else ""
        raise UserError(
            f"space: step {step + 1} of {method.type} finds no pattern of {layers} layers{around} that later steps of "
            f"{method.step_layers} can complete to {whole.layers}; expected looser constraints, another "
            "methodology.step_layers or methodology.type one_shot"
        )
    return space


@dataclass(frozen=True, eq=False, kw_only=True)
class _Beginning(Space):
    """The first layers of the patterns of `whole`."""

    whole: Space

    def _may_end(self, state: State) -> bool:
        return self.whole._completions(self.layers, state) > 0


@dataclass(frozen=True, eq=False, kw_only=True)
class _Shell(Space):
    """Patterns in whose middle `step_layers` layers can be inserted again and again, up to `final_layers`.

    The halves into which the next insertion divides a pattern only grow inwards. What may be inserted thus depends on
    the innermost block of either half with the length of its run, and on the uses. These are a state's own part, in
    this order; it is kept only where constraints look at neighbours.
    """

    step_layers: int
    final_layers: int

    @property
    def _looks_at_neighbours(self) -> bool:
        return bool(self.longest_run or self.never_adjacent or (self.never_first and self.step_layers == 1))

    def _next(self, position: int, state: State, block: int) -> State | None:
        following = super()._next(position, state, block)
        cut = self.layers // 2
        if following is None or not self._looks_at_neighbours or position < cut:
            return following
        last, run, uses, own = following
        if position == cut:
            own = (*state[:2], block, 1, 1)
        else:
            left, left_run, right, right_run, growing = own
            growing = int(growing and block == right and block in self.longest_run)
            own = (left, left_run, right, right_run + growing, growing)
        return last, run, uses, own

    def _may_end(self, state: State) -> bool:
        _, _, uses, own = state
        if not own:
            return self._missing(uses) <= self.final_layers - self.layers
        return self._can_be_filled(self.layers, (own[0], own[1]), (own[2], own[3]), uses)

    def _can_be_filled(self, placed: int, left: Half, right: Half, uses: Uses) -> bool:
        """Return whether later steps can continue between two halves of `placed` layers.

        A step's layers go to the left half first, then to the right one, from outside inwards.
        """
        start = placed // self.step_layers * self.step_layers
        if placed == start:
            touching = left[0] == right[0] and left[1] + right[1] > self.longest_run.get(left[0], self.final_layers)
            if touching or (left[0], right[0]) in self.never_adjacent:
                return False
            if placed == self.final_layers:
                return not self._missing(uses)
        key: tuple[int, State] = (placed, (*left, uses, right))  # no pattern that is still counted has so many layers
        if key not in self._memory:
            self._memory[key] = int(self._can_grow(placed, start, left, right, uses))
        return bool(self._memory[key])

    def _can_grow(self, placed: int, start: int, left: Half, right: Half, uses: Uses) -> bool:
        on_left = placed - start < (start + self.step_layers) // 2 - start // 2
        beside, length = left if on_left else right
        for block in range(len(self.blocks)):
            run = length + 1 if block == beside and block in self.longest_run else 1
            pair = (beside, block) if on_left else (block, beside)
            used = self._use(uses, block)
            if (
                used is None
                or pair in self.never_adjacent
                or run > self.longest_run.get(block, self.final_layers)
                or (beside == -1 and block in self.never_first)
            ):
                continue
            grown = (block, run)
            if self._can_be_filled(placed + 1, grown if on_left else left, right if on_left else grown, used):
                return True
        return False

    def _states(self, layers: int) -> int:
        between = sum(min(self.longest_run.get(block, 1), layers) for block in range(len(self.blocks)))
        return super()._states(self.final_layers) * (between**2 if self._looks_at_neighbours else 1)
