"""Training from a Python session, and loading what it left."""

from __future__ import annotations

import json

import pytest
import torch

import hybridtron as ht

TOKENS = torch.arange(18).view(2, 9)


class Recorder(ht.Callback):
    """Keep the steps and losses seen, and stop after `last`."""

    def __init__(self, last: int) -> None:
        self.last, self.losses = last, []

    def after_step(self, context, row, logged):
        self.losses.append(row["loss"])
        if row["step"] == self.last:
            raise ht.StopTraining


@pytest.fixture
def trained(tiny, tmp_path):
    """Two runs of four steps that differ by their seeds."""
    return [
        ht.train(tiny, f"folder={tmp_path / name}", f"seed={seed}", "train.steps=4")
        for name, seed in (("first", 1), ("second", 2))
    ]


def test_a_run_has_its_metrics_as_plain_rows(trained):
    run = trained[0]
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    assert run.metrics == [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert run.summary["step"] == 4


def test_a_callback_sees_every_step_and_may_stop(tiny):
    recorder = Recorder(last=3)
    run = ht.train(tiny, "train.log_every=10", callbacks=[recorder])
    assert len(recorder.losses) == 3
    assert run.summary["step"] == 3


def test_training_again_needs_resume(tiny):
    ht.train(tiny, "train.steps=4")
    with pytest.raises(ht.UserError, match="exists"):
        ht.train(tiny, "train.steps=6")
    assert len(ht.train(tiny, "train.steps=6", resume=True).metrics) == 6


def test_bad_configs_write_nothing(tiny, tmp_path):
    with pytest.raises(ht.UserError, match=r"optimizer\.lr"):
        ht.train(tiny, "optimizer.lr=-1")
    assert not (tmp_path / "run").exists()


def test_trained_models_load_side_by_side(trained):
    first, second = (ht.load(run.folder) for run in trained)
    assert first.loss(TOKENS).item() != second.loss(TOKENS).item()
    same = ht.load(trained[0].folder / "step_00000004")
    torch.testing.assert_close(first.logits(TOKENS), same.logits(TOKENS), rtol=0, atol=0)
    assert len(first.generate(["the", "a model"], max_tokens=4)) == 2


def test_a_loaded_model_has_the_loss_that_its_run_recorded(tiny):
    from hybridtron.training.evaluate import evaluate_run

    run = ht.train(tiny, "train.steps=4")
    assert evaluate_run(run.folder, None, None)["loss"] == pytest.approx(run.summary["valid_loss"], rel=1e-6)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(ht.UserError, match="no such folder; expected a run folder"):
        ht.load(tmp_path / "nothing")


@pytest.mark.parametrize("callbacks", [[1], [ht.Callback], ht.Callback(), None])
def test_what_is_no_callback_is_refused_before_anything_is_written(tiny, tmp_path, callbacks):
    with pytest.raises(ht.UserError, match=r"callbacks.*expected"):
        ht.train(tiny, callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_method_of_a_callback_is_refused(tiny):
    class Misspelt(ht.Callback):
        def after_steps(self, context, row, logged):
            raise AssertionError

    with pytest.raises(ht.UserError, match=r"Misspelt\.after_steps is never called: .*nearest: after_step"):
        ht.train(tiny, callbacks=[Misspelt()])


class StopsIn(ht.Callback):
    """Stop in one method of the protocol."""

    def __init__(self, method):
        self.steps = 0
        setattr(self, method, self.stop)

    def stop(self, *arguments):
        raise ht.StopTraining

    def before_step(self, context):
        self.steps += 1


@pytest.mark.parametrize(("method", "steps"), [("on_train_start", 0), ("on_save", 2)])
def test_stopping_outside_a_step_trains_no_further_one(tiny, method, steps):
    callback = StopsIn(method)
    keys = ("checkpoint.save_every=2", "checkpoint.asynchronous=false")
    assert ht.train(tiny, *keys, callbacks=[callback]).summary["step"] == steps == callback.steps
    assert ht.train(tiny, resume=True).summary["step"] == 20


class Failing(ht.Callback):
    """Fail in the second step, and keep what it was given."""

    def before_step(self, context):
        self.context = context
        if context.state.step == 1:
            raise RuntimeError("on purpose")


def test_a_run_that_a_callback_broke_can_go_on(tiny):
    """Its lock does not outlive it, whoever keeps the exception or the context."""
    failing = Failing()
    with pytest.raises(RuntimeError, match="on purpose") as kept:
        ht.train(tiny, "train.steps=4", callbacks=[failing])
    assert kept.value
    assert ht.train(tiny, "train.steps=4", resume=True).summary["step"] == 4


def test_the_last_step_of_a_stopped_run_is_recorded(tiny):
    recorder = Recorder(last=3)
    run = ht.train(tiny, "train.log_every=10", callbacks=[recorder])
    assert run.metrics[-1]["step"] == 3
    assert run.metrics[-1]["loss"] == run.summary["loss"] == recorder.losses[-1]
    assert run.metrics[-1]["valid_loss"] == run.summary["valid_loss"]


def test_training_works_outside_the_main_thread(tiny):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ht.train, tiny, "train.steps=4").result().summary["step"] == 4


def test_a_pattern_cannot_be_trained():
    with pytest.raises(ht.UserError, match="expected a YAML file or a dict with all sections"):
        ht.train("attn mlp")
