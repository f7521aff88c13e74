"""Signals stop a run after its step, saved; a second one ends it at once."""

import json
import signal
import subprocess

import pytest

from tests.conftest import command, environment

LONG = ("train.steps=100000", "schedule.type=constant")


@pytest.fixture
def endless(tiny):
    """Starts a run that will not end by itself, and returns it once it trains."""
    started = []

    def start(*more):
        process = subprocess.Popen(command("train", tiny, *LONG, *more), env=environment(), cwd=tiny.parent)
        started.append(process)
        metrics = tiny.parent / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def assert_saved_at_last_step(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((run / (run / "latest").read_text().strip() / "train_state.json").read_text())
    assert state["step"] == rows[-1]["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_one_process(endless, tiny, number):
    process = endless()
    process.send_signal(number)
    assert process.wait(timeout=120) == 0
    assert_saved_at_last_step(tiny.parent / "run")


def test_two_processes(endless, tiny):
    process = endless("--nproc", 2, "parallel.tensor=2")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=120) == 0
    assert_saved_at_last_step(tiny.parent / "run")


def test_one_signal_that_arrives_twice_is_one(endless, tiny):
    """As where a scheduler signals the launcher and its ranks, and the launcher passes it on."""
    process = endless()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert_saved_at_last_step(tiny.parent / "run")


def test_a_second_signal_ends_at_once(endless, tiny):
    process = endless("train.global_batch_size=4096")
    rows = (tiny.parent / "run" / "metrics.jsonl").read_text()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert not (tiny.parent / "run" / "latest").exists()
    assert rows
