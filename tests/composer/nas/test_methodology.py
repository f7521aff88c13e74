"""What each step of an incremental search may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hybridtron.composer.nas.config import MethodologyConfig
from hybridtron.composer.nas.methodology import num_steps, step_space
from hybridtron.composer.space.space import Space
from hybridtron.errors import UserError

WHOLE = Space(("A", "M"), 6)
END = MethodologyConfig(type="end_incremental", step_layers=2)
MIDDLE = MethodologyConfig(type="middle_incremental", step_layers=2)
A, M = 0, 1


def test_one_shot_is_one_step_over_everything():
    assert num_steps(MethodologyConfig(), 6) == 1
    assert step_space(MethodologyConfig(), WHOLE, 0, ()) == WHOLE


def test_layers_are_appended_to_what_was_found():
    assert num_steps(END, 6) == 3
    assert step_space(END, WHOLE, 0, ()).size == 4
    second = step_space(END, WHOLE, 1, (A, M))
    assert sorted(second.enumerate()) == [(A, M, A, A), (A, M, A, M), (A, M, M, A), (A, M, M, M)]
    assert step_space(END, WHOLE, 2, (A, M, M, M)).size == 4


def test_layers_are_inserted_in_the_middle():
    second = step_space(MIDDLE, WHOLE, 1, (A, M))
    assert sorted(second.enumerate()) == [(A, A, A, M), (A, A, M, M), (A, M, A, M), (A, M, M, M)]
    third = step_space(MIDDLE, WHOLE, 2, (A, M, A, A))
    assert all(pattern[:2] == (A, M) and pattern[4:] == (A, A) for pattern in third.enumerate())


def test_constraints_hold_at_every_depth():
    whole = replace(WHOLE, at_most={A: 2}, at_least={A: 2}, never_first=frozenset({A}), never_last=frozenset({A}))
    first = step_space(END, whole, 0, ())
    assert sorted(first.enumerate()) == [(M, A), (M, M)]  # two more attention layers may follow
    last = step_space(END, whole, 2, (M, M, M, A))
    assert sorted(last.enumerate()) == [(M, M, M, A, A, M)]


def test_the_first_layers_are_those_that_the_fixed_ones_can_complete():
    """Layers to come that are fixed or capped cannot make up for what `at_least` asks for."""
    fixed = Space(("A", "M"), 4, fixed={2: M, 3: M}, at_least={A: 2})
    assert list(step_space(END, fixed, 0, ()).enumerate()) == [(A, A)]
    capped = Space(("A", "M", "S"), 4, at_most={A: 1, M: 1}, at_least={A: 1, M: 1}, never_last=frozenset({A, M}))
    assert (2, 2) not in list(step_space(END, capped, 0, ()).enumerate())


def test_inserted_layers_leave_room_for_all_that_is_missing():
    whole = Space(("A", "M", "S"), 6, at_least={A: 3, M: 3})
    second = step_space(MIDDLE, whole, 1, (A, M))
    assert all(set(pattern) == {A, M} for pattern in second.enumerate())
    third = step_space(MIDDLE, whole, 2, (A, A, A, M))
    assert list(third.enumerate()) == [(A, A, M, M, A, M)]


def spaces(layers: int) -> Iterator[Space]:
    """Random constraints that leave some pattern."""
    draw = np.random.default_rng(layers)

    def some(low: int, high: int, blocks: int) -> dict[int, int]:
        return {block: int(draw.integers(low, high)) for block in range(blocks) if draw.random() < 0.4}

    for _ in range(60):
        blocks = int(draw.integers(2, 4))
        ends = [frozenset(b for b in range(blocks) if draw.random() < 0.2) for _ in range(2)]
        pairs = frozenset(p for p in product(range(blocks), repeat=2) if draw.random() < 0.2)
        limits = some(1, layers, blocks), some(0, 3, blocks), some(1, 3, blocks)
        fixed = {i: int(draw.integers(blocks)) for i in range(layers) if draw.random() < 0.2}
        whole = Space(("A", "M", "S")[:blocks], layers, fixed, *limits, *ends, pairs)
        if whole.size:
            yield whole


@pytest.mark.parametrize("step_layers", [1, 2, 3])
def test_what_is_appended_are_the_beginnings_of_all_patterns(step_layers):
    method = MethodologyConfig(type="end_incremental", step_layers=step_layers)
    for whole in spaces(6):
        patterns = list(whole.enumerate())
        for step in range(6 // step_layers):
            depth = step_layers * (step + 1)
            for found in {pattern[: depth - step_layers] for pattern in patterns}:
                expected = {p[:depth] for p in patterns if p[: len(found)] == found}
                assert set(step_space(method, whole, step, found).enumerate()) == expected


@pytest.mark.parametrize("step_layers", [1, 2, 3])
def test_what_is_inserted_can_be_inserted_in_to_the_end(step_layers):
    """Against every insertion into every pattern, one by one."""
    method = MethodologyConfig(type="middle_incremental", step_layers=step_layers)
    refused = 0
    for whole in (replace(space, fixed={}) for space in spaces(6)):
        blocks = range(len(whole.blocks))

        def insertions(found, layers, whole=whole, blocks=blocks):
            depth = replace(whole, layers=layers, at_least=whole.at_least if layers == whole.layers else {})
            half = len(found) // 2
            added = product(blocks, repeat=step_layers)
            patterns = ((*found[:half], *new, *found[half:]) for new in added)
            return [
                p
                for p in patterns
                if depth.allows(p) and (layers == whole.layers or insertions(p, layers + step_layers))
            ]

        if not insertions((), step_layers):
            refused += 1
            with pytest.raises(UserError, match="step 1 of middle_incremental finds no pattern"):
                step_space(method, whole, 0, ())
            continue
        found: tuple[int, ...] = ()
        for step in range(6 // step_layers):
            space = step_space(method, whole, step, found)
            expected = insertions(found, space.layers)
            assert sorted(space.enumerate()) == sorted(expected)
            found = expected[len(expected) // 2]
        assert whole.allows(found)
    assert refused < 20


def test_what_cannot_be_inserted_is_refused_before_anything_is_evaluated():
    """Two blocks that must alternate leave no place in the middle for one layer."""
    whole = Space(("A", "M"), 4, never_adjacent=frozenset({(A, A), (M, M)}))
    assert whole.size == 2
    with pytest.raises(
        UserError, match=r"step 1 of middle_incremental .* layers that later steps of 1 can complete to 4"
    ):
        step_space(MethodologyConfig(type="middle_incremental", step_layers=1), whole, 0, ())
    assert step_space(MIDDLE, whole, 0, ()).size == 2


def test_what_does_not_lead_to_the_end_is_told():
    whole = replace(WHOLE, at_most={A: 1, M: 5}, at_least={A: 1}, never_last=frozenset({M}))
    with pytest.raises(UserError, match="step 3 of end_incremental finds no pattern of 6 layers around 'A M M M'"):
        step_space(END, whole, 2, (A, M, M, M))
