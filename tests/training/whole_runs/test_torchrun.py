"""Processes that torchrun started are recognised."""

import json
import subprocess
import sys

from tests.conftest import environment


def test_two_processes_of_torchrun_are_one_run(tiny):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hybridtron"]
    done = subprocess.run(
        [*launcher, "train", str(tiny), "parallel.tensor=2", "train.steps=3", "schedule.warmup_steps=1"],
        env=environment(GLOO_SOCKET_IFNAME="lo"),
        cwd=tiny.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    layout = json.loads((tiny.parent / "run" / "environment.json").read_text())["layout"]
    assert (layout["world_size"], layout["tensor"], layout["data"]) == (2, 2, 1)
    assert len((tiny.parent / "run" / "metrics.jsonl").read_text().splitlines()) == 3
