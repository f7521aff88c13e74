"""A launched run that is killed once, as `hybridtron runs` and `hybridtron logs` show it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import yaml

import hybridtron as ht
from hybridtron.files import read_last_row
from hybridtron.monitoring.logs import read_log
from tests import warm
from tests.conftest import command, environment

# Imported where a rank starts: the first attempt waits in a save, so that it does not end before it is killed.
HELD = """
import os, sys, time
def hold(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("step_00000006") and os.environ["HYBRIDTRON_ATTEMPT"] == "1":
        time.sleep(600)
sys.addaudithook(hold)
"""


def test_a_killed_run_is_shown_with_its_restart_and_followed_over_it(tiny):
    run = tiny.parent / "run"
    (tiny.parent / "sitecustomize.py").write_text(HELD)
    launch = {"cluster": "local", "processes_per_node": 1, "environment": {"PYTHONPATH": str(tiny.parent)}}
    (tiny.parent / "local.yaml").write_text(yaml.safe_dump(launch))
    keys = ("train.steps=60", "checkpoint.save_every=2", "checkpoint.keep_last=1")
    launched = warm.Popen(
        command("launch", tiny, *keys, "--launch", tiny.parent / "local.yaml"),
        env=environment(), cwd=tiny.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while ((read_last_row(run / "metrics.jsonl") or {}).get("step") or 0) < 5:
            assert launched.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a condition with a deadline
        (status,) = ht.runs(run).runs
        assert status.state == "running"
        os.kill(json.loads((run / "launch" / "attempt_1" / "rank_00000.json").read_text())["pid"], signal.SIGKILL)
        log = b"".join(read_log(run, follow=True)).decode()  # to the end of the run
        assert launched.wait(timeout=240) == 0
    finally:
        launched.kill()
        launched.wait()
    assert log.count("=== attempt ") == 2
    assert "resumed from" in log
    (status,) = ht.runs(run).runs
    assert (status.state, status.step, status.restarts, status.attempts) == ("finished", 60, 1, 2)
    (restart,) = json.loads((run / "summary.json").read_text())["effective_time"]["restarts"]
    assert "was killed (signal 9)" in restart["cause"]
    assert 0 < restart["seconds_to_first_step"] < 240
    assert restart["lost_steps"] == status.lost_steps
    assert 0 < status.effective < 1
