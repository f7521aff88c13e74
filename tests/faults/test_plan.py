from __future__ import annotations

import itertools

import pytest

from hybridtron.errors import UserError
from hybridtron.faults.campaign import run_campaign
from hybridtron.faults.plan import KINDS, LAUNCHED, SPACING, WARM, draw_sessions


def drawn(way, count, seed, processes=(1, 2)):
    kinds = [name for name, kind in KINDS.items() if way in kind.ways]
    return list(draw_sessions(way, kinds, count, processes, seed, per_session=8))


def test_a_seed_decides_the_campaign():
    assert drawn(WARM, 50, 3) == drawn(WARM, 50, 3) != drawn(WARM, 50, 4)


def test_each_kind_takes_part_and_the_count_is_kept():
    for way in (WARM, LAUNCHED):
        faults = [fault for session in drawn(way, 60, 0) for fault in session.faults]
        assert len(faults) == 60
        assert {fault.kind for fault in faults} == {name for name, kind in KINDS.items() if way in kind.ways}


def test_faults_leave_room_for_a_save_and_end_before_the_run():
    for session in drawn(WARM, 40, 1):
        steps = [fault.step for fault in session.faults]
        assert all(later - earlier >= SPACING - 2 for earlier, later in itertools.pairwise(steps))
        assert all(0 <= fault.rank < session.processes and fault.end < session.steps for fault in session.faults)


def test_kinds_for_several_processes_hit_no_single_one():
    sessions = drawn(LAUNCHED, 60, 0)
    assert all(KINDS[fault.kind].smallest <= session.processes for session in sessions for fault in session.faults)


def test_a_campaign_that_would_inject_nothing_is_refused(tmp_path):
    for kinds, count, match in ((["hang_spin"], 2, "launched = 0"), (None, 0, "count = 0")):
        with pytest.raises(UserError, match=match):
            list(run_campaign(tmp_path / "out", kinds, count, 0, 0, [1]))
    assert not (tmp_path / "out").exists()
