"""Messages of data parallelism while a step computes: what begins when, in real processes."""

import json
import sys

import pytest
import torch

from hybridtron.distributed.environment import Environment
from hybridtron.distributed.groups import process_groups
from hybridtron.training.build import build_engine
from tests.distributed.layouts import OVERLAP, Layout
from tests.distributed.walk import micro_batches, run_config
from tests.warm import launch


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw: the parameters of buckets, and the events of steps."""
    folder = tmp_path_factory.mktemp("overlap")
    assert launch([sys.executable, "-m", "tests.distributed.overlapped", str(folder)], 2) == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def reductions(events):
    return [event for event in events if event.startswith("reduce")]


class TestReductions:
    def test_all_buckets_but_the_last_begin_within_the_backward_pass(self, seen):
        for process in seen:
            _, *later = process["steps"]
            assert len(process["buckets"]) > 3
            for events in later:
                before_the_end = events[: _last(events, "gradient embedding.weight")]
                assert len(reductions(before_the_end)) == len(process["buckets"]) - 1

    def test_the_first_step_learns_which_gradients_there_are(self, seen):
        """megatron-core reduces all at the end of it."""
        first, *_ = seen[0]["steps"]
        assert all(event.startswith("reduce") for event in first[-len(seen[0]["buckets"]) :])

    def test_they_belong_to_the_last_micro_batch(self, seen):
        for events in seen[0]["steps"]:
            assert events.count("forward") == 2
            assert not reductions(events[: _last(events, "forward")])

    def test_a_bucket_begins_once_after_its_gradients_and_in_one_order(self, seen):
        for process in seen:
            for events in process["steps"]:
                assert reductions(events) == [f"reduce {index}" for index in range(len(process["buckets"]))]
                for index, names in enumerate(process["buckets"]):
                    assert events.index(f"reduce {index}") > max(_last(events, f"gradient {name}") for name in names)


def _last(events, event):
    return len(events) - 1 - events[::-1].index(event)


def steps_of(overlap, act=lambda engine, model, step: None, steps=3):
    """Train the hybrid in one process; return losses and gradient norms."""
    config = run_config(Layout("hybrid", parallel=overlap))
    found = []
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        torch.manual_seed(0)
        engine, (model,) = build_engine(config, parallel_context)
        for step in range(steps):
            act(engine, model, step)
            result = engine.train_step(micro_batches(step, parallel_context, isolate=False), lr=1e-2)
            found += [result.loss, result.grad_norm]
    return found


def test_parameters_without_a_gradient_hold_up_no_other(monkeypatch):
    """Where layers are left out in a step, after the first."""
    monkeypatch.setattr("hybridtron.distributed.engine.BUCKET_ELEMENTS", 5000)

    def leave_out(engine, model, step):
        if step == 1:
            model.run_layers = lambda stream, documents: stream
        else:
            model.__dict__.pop("run_layers", None)

    assert steps_of(OVERLAP, leave_out) == steps_of({}, leave_out)


def test_a_bucket_that_is_ready_too_early_waits_for_the_one_before(monkeypatch):
    monkeypatch.setattr("hybridtron.distributed.engine.BUCKET_ELEMENTS", 5000)
    begun = []

    def second_first(engine, model, step):
        first, second, *_ = engine.reductions[0].groups
        second.start_grad_sync()
        begun.append([first.grad_reduce_handle is not None, second.grad_reduce_handle is not None])
        first.start_grad_sync()
        begun.append([first.grad_reduce_handle is not None, second.grad_reduce_handle is not None])

    steps_of(OVERLAP, second_first, steps=1)
    assert begun == [[False, False], [True, True]]
