"""Steps that fail; as a program, one of two processes in both of which they do, which write down what they trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from tests.distributed.layouts import TABLE
from tests.distributed.walk import micro_batches, run_config

LAYOUTS, STEPS = ("hybrid dp2 overlap", "hybrid dp2 do overlap"), 3


class Failure(Exception):
    pass


def at_call(number):
    """A hook that raises when it is called for the `number`-th time."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == number:
            raise Failure

    return hook


def fail_in_forward_pass(engine):
    """Of the last micro-batch."""
    return engine.chunks[0].layers["2"].register_forward_pre_hook(at_call(2)).remove


def fail_amid_backward_pass(engine):
    """Of the last micro-batch, in which reductions have begun."""
    return next(engine.chunks[0].layers["1"].parameters()).register_hook(at_call(2)).remove


def fail_before_the_update(engine):
    """When all gradients have been reduced."""
    optimizer = engine.optimizer
    optimizer.prepare_grads = at_call(1)
    return lambda: delattr(optimizer, "prepare_grads")


FAILURES = [fail_in_forward_pass, fail_before_the_update, fail_amid_backward_pass]


def train(engine, step: Callable[[int], Any], failures: Sequence[Callable[[Any], Callable[[], None]]] = ()) -> list:
    """Return loss, norm of gradients and experts' loads of steps, before each of which steps of other tokens fail."""
    found = []
    for number in range(STEPS):
        for fail in failures:
            mend = fail(engine)
            try:
                step(7)
            except Failure:
                mend()
            else:
                raise AssertionError("did not fail")
        result = step(number)
        found.append([result.loss, result.grad_norm, result.expert_load])
    return found


def step_of(engine, number: int) -> Any:
    return engine.train_step(micro_batches(number, engine.parallel_context, isolate=False), lr=1e-2)


def main() -> None:
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():  # before megatron-core is imported
        from hybridtron.distributed.data_parallel import replicas

    torch.set_num_threads(1)
    replicas.BUCKET_ELEMENTS = 1  # a bucket for each parameter
    folder, here = Path(sys.argv[1]), read_environment()
    found = {}
    with process_groups(run_config(TABLE[LAYOUTS[0]]).parallel, here) as parallel_context:
        for name in LAYOUTS:
            for failures in ([], FAILURES):
                engine, _ = build_engine(run_config(TABLE[name]), parallel_context)
                found[f"{name}, {len(failures)} failures"] = train(engine, partial(step_of, engine), failures)
    (folder / f"{here.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
