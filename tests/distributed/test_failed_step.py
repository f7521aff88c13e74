"""A training step that raises leaves nothing behind: the next one is that of an engine that never failed."""

import json
import sys
from functools import cache

import pytest

from tests.distributed.failing_steps import FAILURES, LAYOUTS, Failure, fail_amid_backward_pass, train
from tests.distributed.layouts import DO_OVERLAP, OVERLAP
from tests.distributed.one_process import one_process
from tests.distributed.walk import micro_batches
from tests.warm import launch

ENGINES = {
    "hybrid": ("hybrid", {}),
    "hybrid overlap": ("hybrid", OVERLAP, 1_000_000),  # one bucket, of which a failure leaves a part
    "hybrid do overlap": ("hybrid", DO_OVERLAP, 5000),
    "moe do overlap": ("moe", DO_OVERLAP),
    "delayed": ("delayed", {}),
}


@cache
def without_failures(name):
    with one_process(*ENGINES[name]) as (engine, step):
        return train(engine, step)


@pytest.mark.parametrize("fail", FAILURES)
@pytest.mark.parametrize("name", ENGINES)
def test_the_next_step_is_right(name, fail):
    """Whichever step fails, and with other tokens than the next one has."""
    expected = without_failures(name)
    with one_process(*ENGINES[name]) as (engine, step):
        assert train(engine, step, [fail]) == expected


def test_so_it_is_where_several_processes_reduce_gradients_in_the_backward_pass(tmp_path):
    assert launch([sys.executable, "-m", "tests.distributed.failing_steps", str(tmp_path)], 2) == 0
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for layout in LAYOUTS:
            assert found[f"{layout}, {len(FAILURES)} failures"] == found[f"{layout}, 0 failures"]


class TestLayerStatistics:
    def test_those_of_the_step_that_ends(self):
        with one_process("hybrid", OVERLAP) as (engine, step):
            expected = engine.collect_layer_statistics()
            step(0)
            expected = expected.take()
        with one_process("hybrid", OVERLAP) as (engine, step):
            statistics = engine.collect_layer_statistics()
            mend = fail_amid_backward_pass(engine)
            with pytest.raises(Failure):
                step(7)
            mend()
            step(0)
            assert statistics.take() == expected

    def test_they_stop_when_others_begin(self):
        with one_process("hybrid", {}) as (engine, _):
            layer = engine.chunks[0].layers["0"]
            engine.collect_layer_statistics()
            watched = len(layer._forward_hooks)
            engine.collect_layer_statistics()
            assert len(layer._forward_hooks) == watched


def test_an_evaluation_after_it_is_right():
    with one_process("hybrid", DO_OVERLAP) as (engine, step):
        step(0)
        batches = micro_batches(1, engine.parallel_context, isolate=False)
        expected = engine.evaluate(batches, 8)
        mend = fail_amid_backward_pass(engine)
        with pytest.raises(Failure):
            step(7)
        mend()
        assert engine.evaluate(batches, 8) == expected
