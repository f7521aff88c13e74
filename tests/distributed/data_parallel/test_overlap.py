"""Messages of data parallelism while a step computes: what begins when, in real processes."""

import json
import math
import sys

import pytest
import torch

from tests.distributed.layouts import DO_OVERLAP, OVERLAP
from tests.distributed.models import MODELS
from tests.distributed.one_process import one_process
from tests.distributed.walk import hide_until_waited_for, micro_batches
from tests.warm import launch


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw: the parameters of buckets, and the events of steps."""
    folder = tmp_path_factory.mktemp("overlap")
    assert launch([sys.executable, "-m", "tests.distributed.data_parallel.overlapped", str(folder)], 2) == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def events_of(kind, events):
    return [event for event in events if event.startswith(kind)]


def last(event, events):
    return len(events) - 1 - events[::-1].index(event)


class TestReductions:
    def test_all_buckets_but_the_last_begin_within_the_backward_pass(self, seen):
        for process in seen:
            count = len(process["buckets"]["reduce"])
            assert count > 3
            for events in process["steps"][1:]:
                before_the_end = events[: last("gradient embedding.weight", events)]
                assert len(events_of("reduce", before_the_end)) == count - 1

    def test_the_first_step_learns_which_gradients_there_are(self, seen):
        """megatron-core reduces all at the end of it."""
        first, *_ = seen[0]["steps"]
        assert events_of("gradient", first[first.index("reduce 0") :]) == []

    def test_they_belong_to_the_last_micro_batch(self, seen):
        for events in seen[0]["steps"]:
            assert events.count("forward") == 2
            assert not events_of("reduce", events[: last("forward", events)])

    def test_a_bucket_begins_once_after_its_gradients_and_in_one_order(self, seen):
        for process in seen:
            buckets = process["buckets"]["reduce"]
            for events in process["steps"]:
                assert events_of("reduce", events) == [f"reduce {index}" for index in range(len(buckets))]
                for index, names in enumerate(buckets):
                    assert events.index(f"reduce {index}") > max(last(f"gradient {name}", events) for name in names)


class TestGathers:
    def test_all_begin_after_the_update_and_before_the_next_forward_pass(self, seen):
        for process in seen:
            everything = [f"gather {index}" for index in range(len(process["buckets"]["gather"]))]
            for events in process["steps"]:
                assert events[-len(everything) :] == everything
                assert len(events_of("gather", events)) == len(everything)

    def test_each_layer_waits_for_its_parameters_alone(self, seen):
        for process in seen:
            buckets = process["buckets"]["gather"]
            assert len(buckets) > 3
            for events in process["steps"][1:]:
                for number in range(5):
                    before = events[: events.index(f"layer {number}")]
                    needed = {
                        f"wait for {index}"
                        for index, names in enumerate(buckets)
                        if any(_position(name) <= number for name in names)
                    }
                    assert set(events_of("wait for", before)) == needed
                assert len(needed) < len(buckets)
                waits = events_of("wait for", events[: events.index("end of layer 4")])
                assert waits == [f"wait for {index}" for index in range(len(buckets))]


def _position(name):
    """The layer before which a parameter is read; -1 before all."""
    kind, number = name.split(".")[:2]
    return int(number) if kind == "layers" else -1 if kind == "embedding" else 5


def leaving_out_layers(parallel, left_out=1, bucket_elements=1):
    """Train three steps, one of them without layers; return losses and norms of gradients."""
    with one_process("hybrid", parallel, bucket_elements) as (engine, step):
        (model,) = engine.chunks
        found = []
        for number in range(3):
            if number == left_out:
                model.run_layers = lambda stream, documents: stream
            result = step(number)
            found += [result.loss, result.grad_norm]
            model.__dict__.pop("run_layers", None)
        return found


@pytest.mark.parametrize("overlap", [OVERLAP, DO_OVERLAP])
@pytest.mark.parametrize(("left_out", "bucket_elements"), [(1, 1), (0, 5000), (1, 5000)])
def test_layers_that_do_not_run_hold_up_no_others(overlap, left_out, bucket_elements):
    """Nor do they the rest of their bucket."""
    expected = leaving_out_layers({}, left_out)
    assert leaving_out_layers(overlap, left_out, bucket_elements) == pytest.approx(expected, rel=1e-6)


def test_a_bucket_that_is_ready_too_early_waits_for_the_one_before():
    with one_process("hybrid", OVERLAP) as (engine, _):
        first, second, *_ = engine.reductions[0].groups
        second.start_grad_sync()
        assert (first.grad_reduce_handle, second.grad_reduce_handle) == (None, None)
        first.start_grad_sync()
        assert None not in (first.grad_reduce_handle, second.grad_reduce_handle)


@pytest.mark.parametrize("model", MODELS)
def test_no_layer_reads_a_parameter_before_it_is_gathered(model):
    with one_process(model, DO_OVERLAP) as (engine, step):
        assert step(0).applied
        hide_until_waited_for(engine)
        assert math.isfinite(step(1).loss)


def test_one_that_does_is_seen():
    with one_process("hybrid", DO_OVERLAP) as (engine, step):
        engine.chunks[0].layers["2"]._forward_pre_hooks.clear()
        assert step(0).applied
        hide_until_waited_for(engine)
        assert math.isnan(step(1).loss)


def test_process_groups_are_not_left_with_gathers_under_way():
    with one_process("hybrid", DO_OVERLAP) as (engine, step):
        assert step(0).applied
        assert engine.gathers.pending
    assert not engine.gathers.pending


class TestEverythingElseWaits:
    @pytest.fixture(scope="class")
    def trained(self):
        with one_process("tied", DO_OVERLAP) as (engine, step):
            yield engine, step

    def test_evaluation(self, trained):
        engine, step = trained
        step(0)
        hide_until_waited_for(engine)
        batches = micro_batches(1, engine.parallel_context, isolate=False)
        assert math.isfinite(engine.evaluate(batches, 8))

    def test_whoever_takes_the_model(self, trained):
        engine, step = trained
        step(0)
        hide_until_waited_for(engine)
        assert all(parameter.isfinite().all() for parameter in engine.chunks[0].parameters())

    def test_the_average_of_weights(self, trained):
        engine, step = trained
        step(0)
        hide_until_waited_for(engine)
        (model,) = engine.chunks.chunks
        with engine.average.in_place_of_weights():
            assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert all(parameter.isfinite().all() for parameter in model.parameters())

    def test_a_checkpoint_whose_tensors_were_listed_before(self, trained):
        from hybridtron.distributed.checkpoint.layout import view_of
        from hybridtron.distributed.checkpoint.writing import CheckpointWriter

        engine, step = trained
        writer = CheckpointWriter(engine)
        writer.prepare()
        step(0)
        hide_until_waited_for(engine)
        writer.stage()
        assert len(writer.slots) > 20
        assert all(view_of(writer.buffer, slot).isfinite().all() for slot in writer.slots)

    def test_a_skipped_step_changes_nothing(self, trained):
        engine, step = trained
        (model,) = engine.chunks
        before = [parameter.clone() for parameter in model.parameters()]
        handle = model.final_norm.weight.register_hook(lambda gradient: gradient * math.nan)
        assert not step(0).applied
        handle.remove()
        assert not engine.gathers.pending
        assert all(map(torch.equal, before, model.parameters()))
        assert step(0).applied
