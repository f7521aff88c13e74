"""The callback protocol: the order of calls, the rows, and a callback that ends training."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pytest

from hybridtron.config.load import load
from hybridtron.distributed.engine import Engine, StepResult
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.training.callbacks import Callback, StopTraining
from hybridtron.training.config import RunConfig
from hybridtron.training.proxy_run import train_proxy
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve


class Recorder(Callback):
    """Keep the calls, and the rows of all steps; stop after `last_step`."""

    def __init__(self, last_step=None):
        self.calls, self.rows, self.logged, self.last_step = [], [], [], last_step

    def on_train_start(self, context):
        self.calls.append(("start", context.state.step))

    def before_step(self, context):
        self.calls.append(("before", context.state.step))

    def after_step(self, context, row, logged):
        self.calls.append(("after", context.state.step))
        self.rows.append(row)
        self.logged.append(logged)
        if context.state.step == self.last_step:
            raise StopTraining("enough")

    def on_evaluation(self, context):
        assert context.valid_loss > 0
        self.calls.append(("evaluation", context.state.step))

    def on_save(self, context, checkpoint):
        assert (checkpoint / "train_state.json").is_file()
        self.calls.append(("save", context.state.step))

    def on_train_end(self, context):
        self.calls.append(("end", context.state.step))

    def close(self):
        self.calls.append(("close", None))


def resolved(tiny, *overrides):
    return resolve(load(tiny, ["schedule.warmup_steps=1", *overrides], RunConfig))


def test_the_order_of_calls(tiny):
    recorder = Recorder()
    keys = ("train.steps=3", "train.eval_every=2", "checkpoint.save_every=2", "checkpoint.asynchronous=false")
    train(resolved(tiny, *keys), read_environment(), callbacks=[recorder])
    assert recorder.calls == [
        ("start", 0), ("before", 0), ("after", 1),
        ("before", 1), ("evaluation", 2), ("after", 2), ("save", 2),
        ("before", 2), ("evaluation", 3), ("after", 3), ("save", 3),
        ("end", 3), ("close", None),
    ]  # fmt: skip


def test_a_callback_sees_every_step_and_metrics_jsonl_the_logged_ones(tiny):
    recorder = Recorder()
    config = resolved(tiny, "train.steps=7", "train.log_every=3")
    run = train(config, read_environment(), callbacks=[recorder])
    assert [row["step"] for row in recorder.rows] == [1, 2, 3, 4, 5, 6, 7]
    logged = [row for row, kept in zip(recorder.rows, recorder.logged, strict=True) if kept]
    assert [row["step"] for row in logged] == [1, 3, 6, 7]
    assert run.metrics == logged
    own = [row["step_loss"] for row in recorder.rows]
    assert [row["loss"] for row in logged] == [own[0], fmean(own[1:3]), fmean(own[3:6]), own[6]]
    assert run.summary["loss"] == own[6]
    assert run.folder == config.run_folder
    assert run.summary == json.loads((run.folder / "summary.json").read_text())


def test_a_loss_that_is_not_finite_is_left_out_of_the_logged_mean(tiny, monkeypatch):
    losses = iter([6.0, 6.0, math.nan, 4.0, 2.0])
    monkeypatch.setattr(Engine, "train_step", lambda *_: StepResult(loss := next(losses), 1.0, math.isfinite(loss)))
    recorder = Recorder()
    train_proxy(resolved(tiny, "train.steps=5", "train.log_every=5"), callbacks=[recorder])
    assert recorder.logged == [True, False, True, False, True]  # the first, the skipped and the last one
    assert [row["loss"] for row in recorder.rows] == [6.0, 6.0, 6.0, 4.0, 3.0]
    assert math.isnan(recorder.rows[2]["step_loss"])


def test_a_callback_ends_training_saved_and_reported_and_the_run_resumes(tiny, capfd):
    stopping, config = Recorder(last_step=4), resolved(tiny, "train.steps=9")
    run = train(config, read_environment(), callbacks=[stopping])
    assert stopping.calls[-5:] == [("after", 4), ("save", 4), ("evaluation", 4), ("end", 4), ("close", None)]
    assert run.summary["step"] == 4
    assert "stopped by Recorder at step 4: enough" in capfd.readouterr().err
    continued = Recorder()
    assert train(config, read_environment(), resume=True, callbacks=[continued]).summary["step"] == 9
    assert continued.calls[0] == ("start", 4)


def test_callbacks_are_closed_after_an_error(tiny):
    class Failing(Callback):
        def before_step(self, context):
            raise RuntimeError("from a callback")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="from a callback"):
        train(resolved(tiny), read_environment(), callbacks=[recorder, Failing()])
    assert recorder.calls[-1] == ("close", None)


def test_a_proxy_run_takes_the_same_steps_as_a_run_that_writes_files(tiny):
    config, recorder = resolved(tiny, "train.steps=5"), Recorder()
    loss = train_proxy(config, callbacks=[recorder])
    run = train(config, read_environment())
    assert [row["loss"] for row in recorder.rows] == [row["loss"] for row in run.metrics]
    assert loss == run.summary["valid_loss"]
    assert not any(call == "save" for call, _ in recorder.calls)
