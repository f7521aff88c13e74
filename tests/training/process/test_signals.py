"""Signals stop a run after its step, saved; a second one ends it at once."""

import json
import signal
import subprocess
from types import SimpleNamespace

import pytest

import hybridtron as ht
from hybridtron.training.process.signals import ECHO_SECONDS, StopRequest
from tests import warm
from tests.conftest import command, environment

LONG = ("train.steps=100000", "schedule.type=constant")


@pytest.fixture
def endless(tiny):
    """Starts a run that will not end by itself, and returns it once it trains."""
    started = []

    def start(*more, rows=3):
        with (tiny.parent / "printed").open("w") as printed:
            process = warm.Popen(
                command("train", tiny, *LONG, *more), env=environment(), cwd=tiny.parent, stderr=printed
            )
        started.append(process)
        metrics = tiny.parent / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= rows):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def told(tiny):
    """The lines about the end."""
    return [line for line in (tiny.parent / "printed").read_text().splitlines() if "at once" in line]


def assert_saved_at_last_step(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((run / (run / "latest").read_text().strip() / "train_state.json").read_text())
    assert state["step"] == rows[-1]["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_one_process(endless, tiny, number):
    process = endless()
    process.send_signal(number)
    assert process.wait(timeout=120) == 0
    again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
    assert told(tiny) == [f"stopping after this step; {again} to end at once without saving"]
    assert "saved, continue with --resume" in (tiny.parent / "printed").read_text()
    assert_saved_at_last_step(tiny.parent / "run")


def test_two_processes(endless, tiny):
    process = endless("--nproc", 2, "parallel.tensor=2")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=120) == 0
    assert len(told(tiny)) == 1
    assert_saved_at_last_step(tiny.parent / "run")


def test_one_signal_that_arrives_twice_is_one(monkeypatch):
    """As where a scheduler signals the launcher and its ranks, and the launcher passes it on, until a while later."""
    request, ended, now = StopRequest(prints=False), [], [100.0]
    monkeypatch.setattr("hybridtron.training.process.signals.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("hybridtron.training.process.signals.os", SimpleNamespace(_exit=ended.append))
    for later, code in ((0.0, []), (ECHO_SECONDS, []), (ECHO_SECONDS + 0.01, [128 + signal.SIGTERM])):
        now[0] = 100.0 + later
        request.receive(signal.SIGTERM, None)
        assert ended == code


def test_a_run_that_gets_one_signal_twice_saves(tiny, monkeypatch):
    class Twice(ht.Callback):
        def before_step(self, context):
            if context.state.step == 2:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)

    clock = SimpleNamespace(monotonic=lambda: 100.0)  # on which no machine is too slow for an echo
    monkeypatch.setattr("hybridtron.training.process.signals.time", clock)
    monkeypatch.setattr("hybridtron.training.process.signals.os._exit", lambda code: pytest.fail(f"ended with {code}"))
    assert ht.train(tiny, callbacks=[Twice()]).summary == {}
    assert_saved_at_last_step(tiny.parent / "run")


def test_a_second_signal_ends_at_once(endless, tiny):
    process = endless("train.global_batch_size=512", rows=1)  # a step of a second
    process.send_signal(signal.SIGSTOP)  # so that both find it in the same step, whenever this process sends them
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert len(told(tiny)) == 2
    assert "ended at once, without saving" in told(tiny)[1]
    assert not (tiny.parent / "run" / "latest").exists()


def test_a_signal_that_interrupts_the_handler_of_another_comes_after_it(monkeypatch):
    request, lines = StopRequest(prints=True), []

    def write(descriptor, content):
        if not lines and not request.received:
            request.receive(signal.SIGINT, None)
        lines.append(content.decode())

    monkeypatch.setattr("hybridtron.training.process.signals.os.write", write)
    monkeypatch.setattr("hybridtron.training.process.signals.os._exit", lambda code: lines.append(str(code)))
    request.receive(signal.SIGTERM, None)
    assert lines[0].startswith("stopping after this step")
    assert lines[1].startswith("ended at once")
    assert lines[2] == str(128 + signal.SIGINT)
    assert request.number == signal.SIGTERM


def test_in_python_messages_name_the_parameter(tiny, capfd):
    class Interrupt(ht.Callback):
        def before_step(self, context):
            if context.state.step == 2:
                signal.raise_signal(signal.SIGINT)

    assert ht.train(tiny, callbacks=[Interrupt()]).summary == {}
    assert "saved, continue with resume=True" in capfd.readouterr().err
