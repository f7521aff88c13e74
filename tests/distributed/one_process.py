"""The engine of a model of the table of layouts, in one process: this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from tests.distributed.layouts import Layout
from tests.distributed.walk import micro_batches, run_config


@contextmanager
def one_process(
    model: str, parallel: dict[str, Any], bucket_elements: int = 1
) -> Iterator[tuple[Any, Callable[[int], Any]]]:
    """Yield the engine of a model of the table, by default with a bucket for each parameter, and a step of it."""
    config = run_config(Layout(model, parallel=parallel))
    with (
        process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context,
        pytest.MonkeyPatch.context() as patch,
    ):
        # It imports megatron-core, which process_groups must come before.
        from hybridtron.distributed.data_parallel import replicas

        patch.setattr(replicas, "BUCKET_ELEMENTS", bucket_elements)
        engine, _ = build_engine(config, parallel_context)

        def step(number):
            return engine.train_step(micro_batches(number, parallel_context, config.data.isolates), lr=1e-2)

        yield engine, step
