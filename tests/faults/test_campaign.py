"""A short campaign: every kind of fault once, in ranks that are forked; some in runs of the local launcher."""

from __future__ import annotations

import json

import pytest

from hybridtron.faults.plan import KINDS, WARM
from tests import warm
from tests.conftest import command, environment

SECONDS = 900  # many processes start, on a machine that may be busy
pytestmark = pytest.mark.timeout(SECONDS + 60)


def campaign(folder, *arguments):
    done = warm.run(
        command("faults", *arguments, "--json"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done, json.loads(done.stdout)


def test_every_kind_recovers(tmp_path):
    kinds = [name for name, kind in KINDS.items() if WARM in kind.ways and name != "disk_full"]  # which needs root
    done, report = campaign(tmp_path, "--kinds", *kinds, "--count", len(kinds), "--processes", 1, 2)
    assert done.returncode == 0, done.stderr
    assert "leak" not in done.stderr  # which nanobind's modules report where a process forks
    found = {fault["kind"]: fault["outcome"] for fault in report["faults"]}
    assert found.keys() == set(kinds)
    assert {kind for kind, outcome in found.items() if outcome == "went on"} == {
        "file_limit", "read_only", "vanished", "non_finite", "pause", "clock_jump",
    }  # fmt: skip
    refused = {kind for kind, outcome in found.items() if outcome == "loud"}
    assert refused <= {"two_damaged", "all_damaged"}  # unless a save that was under way has come in between


def test_a_launched_run_survives_the_death_of_a_rank_and_of_all(tmp_path):
    done, report = campaign(
        tmp_path, "--kinds", "kill", "kill_all", "--count", 2, "--launched", 2, "--processes", 2, "--seed", 1
    )
    assert done.returncode == 0, done.stderr
    assert [fault["outcome"] for fault in report["faults"]] == ["recovered"] * 2
    cause = next(fault["cause"] for fault in report["faults"] if fault["kind"] == "kill")
    assert "was killed (signal 9)" in cause
    assert all(fault["restart"] > 0 and fault.get("lost_saved", 0) == 0 for fault in report["faults"])


def test_a_run_that_does_not_verify_its_checkpoints_is_found_out(tmp_path):
    done, report = campaign(tmp_path, "checkpoint.verify=none", "--kinds", "bit_flip", "--count", 6, "--processes", 1)
    assert done.returncode == 1
    assert report["wrong"] >= 1
