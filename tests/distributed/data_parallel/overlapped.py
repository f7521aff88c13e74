"""One of two processes that train with overlap and write down what came after what in each step."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from tests.distributed.layouts import TABLE
from tests.distributed.walk import micro_batches, run_config

LAYOUT, STEPS = "hybrid dp2 do overlap", 3


def record(engine, events: list[str]) -> None:
    """Write down forward passes of model and layers, gradients of parameters, and when the messages of buckets begin
    and are waited for."""
    (replica,) = engine.replicas
    replica.register_forward_pre_hook(lambda *_: events.append("forward"))
    for name, parameter in replica.module.named_parameters():
        parameter.register_hook(lambda grad, name=name: events.append(f"gradient {name}"))
    for name, layer in replica.module.layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: events.append(f"layer {name}"))
        layer.register_forward_hook(lambda *_, name=name: events.append(f"end of layer {name}"))
    order, gathers = engine.reductions[0], engine.gathers
    order.begin = [partial(reduce, events, index, begin) for index, begin in enumerate(order.begin)]
    for index, group in enumerate(gathers.groups):
        group.start_param_sync = partial(gather, events, index, group.start_param_sync, group)


def reduce(events: list[str], index: int, begin, *arguments) -> None:
    begin(*arguments)
    events.append(f"reduce {index}")


def gather(events: list[str], index: int, begin, group, force_sync: bool = False) -> None:
    assert (group.param_gather_handle is not None) == force_sync
    events.append(f"{'wait for' if force_sync else 'gather'} {index}")
    begin(force_sync=force_sync)


def main() -> None:
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():
        from hybridtron.distributed.data_parallel import replicas

    torch.set_num_threads(1)
    replicas.BUCKET_ELEMENTS = 5000
    config, folder, here = run_config(TABLE[LAYOUT]), Path(sys.argv[1]), read_environment()
    with process_groups(config.parallel, here) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        events: list[str] = []
        record(engine, events)
        names = {parameter: name for name, parameter in model.named_parameters()}
        buckets = {
            "reduce": [[names[each] for each in group.params] for group in engine.reductions[0].groups],
            "gather": [[names[each] for each in group.params] for group in engine.gathers.groups],
        }
        steps = []
        for step in range(STEPS):
            events.clear()
            engine.train_step(micro_batches(step, parallel_context, isolate=False), lr=1e-2)
            steps.append(list(events))
    (folder / f"{here.rank}.json").write_text(json.dumps({"buckets": buckets, "steps": steps}))


if __name__ == "__main__":
    main()
