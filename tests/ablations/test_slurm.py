"""A study of three axes on a SLURM cluster: interrupted, it goes on with what is missing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hybridtron.ablations.config import AblationConfig
from hybridtron.ablations.run import read_ablation
from hybridtron.config.load import load
from hybridtron.training.run_folder.attempts import read_attempts
from tests import warm
from tests.ablations.studies import LAYERS, LEARNING_RATE, study
from tests.conftest import command, environment

pytestmark = pytest.mark.slurm

AXES = {
    "lr": LEARNING_RATE,
    "rotary": {"type": "grid", "key": "model.blocks.attn.rotary_fraction", "values": [1.0, 0.0]},
    "layers": LAYERS,
}
LAUNCH = {
    "cluster": "slurm",
    "cpus_per_process": 1,
    "save_seconds": 60,
    "environment": {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
}


class Driver:
    """`hybridtron ablate` as a process of its own."""

    def __init__(self, file: Path) -> None:
        launch = file.parent / "slurm.yaml"
        launch.write_text(yaml.safe_dump(LAUNCH))
        self.process = warm.Popen(
            command("ablate", file, "--launch", launch), cwd=file.parent, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment(),
            start_new_session=True,
        )  # fmt: skip

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the process runs."""
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)  # a condition with a deadline

    def interrupt(self) -> str:
        self.process.send_signal(signal.SIGINT)
        text, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 130, text
        return text

    def finish(self) -> str:
        text, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, text
        return text


def test_a_study_is_interrupted_and_only_what_is_missing_is_submitted_again(tiny, slurm):
    file = tiny.parent / "study.yaml"
    file.write_text(yaml.safe_dump(study(tiny, axes=AXES, combine="one_at_a_time", max_parallel=2)))
    config = load(file, (), AblationConfig)
    folder = tiny.parent / "study"

    def finished() -> set[str]:
        return set(read_ablation(config).status.finished)

    def jobs() -> dict[str, str]:
        numbers = folder / "jobs.json"
        return json.loads(numbers.read_text()) if numbers.is_file() else {}

    first = Driver(file)
    first.wait_until(lambda: len(finished()) >= 1)
    assert "the same command follows them" in first.interrupt()
    submitted = jobs()
    assert len(submitted) == 8
    assert len({number.partition("_")[0] for number in submitted.values()}) == 1  # one array

    second = Driver(file)  # follows the jobs of the first one
    second.wait_until(lambda: len(finished()) >= 3)
    second.interrupt()
    kept = jobs()
    assert kept.items() < submitted.items()

    slurm.cancel_all()
    done = finished()
    assert 3 <= len(done) < 8
    text = Driver(file).finish()
    assert "4 cells x 2 seeds = 8 runs: 8 measured" in text
    again = jobs()
    assert again.keys() == submitted.keys() - done
    assert not set(again.values()) & set(submitted.values())

    ablation = read_ablation(config)
    assert len(ablation.rows) == 8
    assert all(len(read_attempts(run.config.run_folder)) == 1 for run in ablation.plan.runs if run.name in done)
    assert set(ablation.axes) == set(AXES)
