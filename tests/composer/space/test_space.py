"""Which patterns a search may try: against every pattern, one by one."""

from __future__ import annotations

import time
from collections import Counter
from itertools import groupby, pairwise, product

import numpy as np
import pytest

from hybridtron.composer.space.space import Limit, Space
from hybridtron.errors import UserError

BLOCKS = ("attn", "mlp", "mamba")
ATTN, MLP, MAMBA = range(3)
SPACES = {
    "free": Space(BLOCKS, 4),
    "fixed": Space(BLOCKS, 5, fixed={0: MLP, 3: MAMBA}),
    "at most": Space(BLOCKS, 6, at_most={ATTN: 2, MAMBA: 3}),
    "at least": Space(BLOCKS, 5, at_least={ATTN: 2, MLP: 1}),
    "runs": Space(BLOCKS, 6, longest_run={ATTN: 1, MLP: 2}),
    "ends": Space(BLOCKS, 4, never_first=frozenset({ATTN}), never_last=frozenset({MAMBA, MLP})),
    "neighbours": Space(BLOCKS, 5, never_adjacent=frozenset({(ATTN, ATTN), (MAMBA, ATTN)})),
    "limit": Space(BLOCKS, 6, limits=(Limit((3.0, 1.0, 0.5), 8.0),)),
    "limit and counts": Space(BLOCKS, 6, at_most={MLP: 2}, at_least={ATTN: 1}, limits=(Limit((3.0, 1.0, 0.5), 8.0),)),
    "two limits": Space(BLOCKS, 6, limits=(Limit((3.0, 1.0, 0.5), 11.0), Limit((0.0, 2.0, 4.0), 13.0))),
    "all at once": Space(
        BLOCKS, 7, {2: MLP}, {ATTN: 2}, {MAMBA: 2}, {MLP: 3}, frozenset({ATTN}), frozenset(), frozenset({(ATTN, ATTN)})
    ),
}


def allowed(space: Space, pattern: tuple[int, ...]) -> bool:
    """The constraints as a user would check them."""
    uses = Counter(pattern)
    runs = [(block, len(list(run))) for block, run in groupby(pattern)]
    return (
        all(pattern[i] == block for i, block in space.fixed.items())
        and all(uses[block] <= count for block, count in space.at_most.items())
        and all(uses[block] >= count for block, count in space.at_least.items())
        and all(length <= space.longest_run.get(block, 99) for block, length in runs)
        and pattern[0] not in space.never_first
        and pattern[-1] not in space.never_last
        and all(sum(limit.costs[block] for block in pattern) <= limit.most for limit in space.limits)
        and not any(pair in space.never_adjacent for pair in pairwise(pattern))
    )


@pytest.mark.parametrize("name", SPACES)
def test_exactly_the_allowed_patterns_are_there(name):
    space = SPACES[name]
    expected = [p for p in product(range(3), repeat=space.layers) if allowed(space, p)]
    assert list(space.enumerate()) == expected
    assert space.size == len(expected) > 0
    assert [p for p in product(range(3), repeat=space.layers) if space.allows(p)] == expected


@pytest.mark.parametrize("name", SPACES)
def test_draws_are_uniform(name):
    space = SPACES[name]
    generator = np.random.default_rng(0)
    draws = 10 * space.size
    counts = Counter(space.draw(generator) for _ in range(draws))
    assert set(counts) <= set(space.enumerate())
    chi_squared = sum((counts[p] - 10) ** 2 / 10 for p in space.enumerate())
    assert chi_squared < space.size + 5 * (2 * space.size) ** 0.5


@pytest.mark.parametrize("name", SPACES)
def test_neighbours_are_allowed_and_one_step_away(name):
    space = SPACES[name]
    for pattern in list(space.enumerate())[:20]:
        near = space.neighbours(pattern)
        assert len(set(near)) == len(near)
        for other in near:
            assert allowed(space, other)
            changed = [i for i in range(space.layers) if pattern[i] != other[i]]
            assert len(changed) == 1 or (len(changed) == 2 and Counter(other) == Counter(pattern))
        singles = [p for p in space.enumerate() if sum(a != b for a, b in zip(p, pattern, strict=True)) == 1]
        assert set(singles) <= set(near)


def test_a_large_space_is_counted_and_drawn_from_at_once():
    space = Space(BLOCKS, 64, at_most={ATTN: 8}, longest_run={ATTN: 1})
    assert space.size > 10**25
    pattern = space.draw(np.random.default_rng(0))
    assert allowed(space, pattern)
    assert space.allows(pattern)


def test_counts_beyond_floats_are_drawn_from():
    space = Space(tuple("abcdefghijklmnopqr"), 256)
    assert space.size == 18**256
    pattern = space.draw(np.random.default_rng(0))
    assert space.allows(pattern)
    assert len(set(pattern)) == 18
    assert space.at([0.0] * 256) == (0,) * 256
    assert space.at([1.0] * 256) == (17,) * 256


def test_too_many_states_to_count_are_refused_at_once():
    begun = time.process_time()
    space = Space(("a", "b", "c", "d"), 96, at_most={0: 40, 1: 40, 2: 40})
    with pytest.raises(UserError) as refusal:
        space.size  # noqa: B018
    for words in ("10,260,104 states", "at most 200,000", "fewer layers than 96", "at_most (a 40, b 40, c 40)"):
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("name", SPACES)
def test_states_are_no_more_than_foreseen(name):
    space = SPACES[name]
    assert space.size
    assert 0 < len(space._memory) <= space._states(space.layers)


def test_constraints_may_leave_nothing():
    assert Space(BLOCKS, 4, at_most=dict.fromkeys(range(3), 1)).size == 0
