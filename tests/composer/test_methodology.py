"""What each step of an incremental search may change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hybridtron.composer.config import MethodologyConfig
from hybridtron.composer.methodology import num_steps, step_space
from hybridtron.composer.space import Space
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


def test_a_dead_end_is_told():
    whole = replace(WHOLE, at_most={A: 1, M: 5}, at_least={A: 1}, never_last=frozenset({M}))
    with pytest.raises(UserError, match="step 3 of end_incremental finds no pattern of 6 layers around 'A M M M'"):
        step_space(END, whole, 2, (A, M, M, M))
