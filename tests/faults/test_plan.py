from __future__ import annotations

import itertools

import pytest

from hybridtron.cli.main import main
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


REFUSED = {  # kinds, count, launched, processes, overrides
    "no fault": ((None, 0, 0, [1], []), "^count = 0"),
    "no kind": (([], 1, 0, [1], []), r"^kinds = \[\]: expected at least one of .*, or None for all"),
    "a kind of the launcher's runs in forked ones": (
        (["hang_stop"], 2, 0, [1], []),
        "^launched = 0: expected at least 1",
    ),
    "only such kinds, and forked ranks": ((["hang_stop"], 2, 1, [1], []), "^launched = 1: expected `count`, 2"),
    "a kind of forked ranks in launched runs": (
        (["all_damaged"], 2, 2, [1], []),
        "^launched = 2: expected less than `count`",
    ),
    "only kinds of forked ranks, and launched runs": (
        (["all_damaged"], 4, 2, [1], []),
        "^launched = 2: expected 0",
    ),
    "a kind of two processes for one": ((["kill_node"], 1, 1, [1], []), "^processes = 1: expected at least 2"),
    "a key that there is not": ((["kill"], 1, 0, [1], ["checkpoint.verfy=none"]), "nearest: verify"),
    "a key that sessions set": ((["kill"], 1, 0, [1], ["folder=elsewhere"]), "folder: is set by each session"),
    "a section that has such a key": ((["kill"], 1, 0, [1], ["train={steps: 3}"]), "train: is set by each session"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_campaign_that_could_not_be_as_asked_for_is_refused(case, tmp_path):
    (kinds, count, launched, processes, overrides), match = REFUSED[case]
    with pytest.raises(UserError, match=match):
        list(run_campaign(tmp_path / "out", kinds, count, launched, 0, processes, overrides))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kinds", "kil"], "--kinds: kil: expected"),
        (
            ["--kinds", "all_damaged", "--count", "2", "--launched", "2"],
            "--launched = 2: expected less than --count, 2",
        ),
        (["--kinds", "all_damaged", "--count", "4", "--launched", "2"], "--launched = 2: expected 0, as all_damaged"),
        (["--kinds", "hang_stop", "--count", "2", "--launched", "1"], "--launched = 1: expected --count, 2"),
        (["--count", "2", "--launched", "3"], "--launched = 3: expected 0 to --count, 2"),
    ],
)
def test_the_command_line_names_its_options(arguments, expected, capsys):
    assert main(["faults", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"hybridtron: error: {expected}")
