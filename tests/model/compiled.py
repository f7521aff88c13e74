"""Models of the table of layouts with and without torch.compile: losses, gradients, and what is compiled when.

python -m tests.model.compiled [BACKEND [MODEL ...]] prints a line for each model, by default all with aot_eager, which
traces and differentiates as inductor does but calls no compiler.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from tests.distributed.layouts import MODELS, Layout
from tests.distributed.walk import distance, micro_batches, run_config

STEPS = 4


@dataclass
class Seen:
    """What steps of training gave."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # of the first step
    compiled: list[int] = field(default_factory=list)  # functions, up to and with each step


def trained(layout: Layout, context: ParallelContext, backend: str | None = None, steps: int = STEPS) -> Seen:
    """Train a model of the table, compiled by a backend of torch.compile where one is named."""
    from hybridtron.training.build import build_engine  # imports megatron-core, which process_groups must come before

    config = run_config(layout)
    engine, chunks = build_engine(config, context)
    if backend:
        from hybridtron.model.compiling import compile_layers

        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compile_layers(chunks, context.device, backend)
    seen = Seen()
    for step in range(steps):
        batches = micro_batches(step, context, config.data.isolates)
        seen.losses.append(engine.train_step(batches, lr=1e-2).loss)
        if step == 0:
            parameters = (entry for chunk in chunks for entry in chunk.named_parameters())
            seen.gradients = {name: each.main_grad.clone() for name, each in parameters if each.requires_grad}
        if backend:
            seen.compiled.append(torch._dynamo.utils.counters["frames"]["ok"])
    return seen


def compared(layout: Layout, backend: str, context: ParallelContext) -> dict[str, Any]:
    """Train with and without torch.compile; return how far losses and gradients are apart, and what was compiled."""
    plain, compiled = trained(layout, context), trained(layout, context, backend)
    apart = (abs(a / b - 1) for a, b in zip(compiled.losses, plain.losses, strict=True))
    gradients = distance(compiled.gradients, plain.gradients)
    return {"losses": max(apart), "gradients": max(gradients.values()), "compiled": compiled.compiled}


def in_one_process(layout: Layout, backend: str) -> dict[str, Any]:
    """Compare in a process by itself."""
    with process_groups(run_config(layout).parallel, Environment(0, 1, 0, None, "single")) as context:
        return compared(layout, backend, context)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # megatron-core's advice
    torch.set_num_threads(1)
    for model in sys.argv[2:] or MODELS:
        print(model, in_one_process(Layout(model), sys.argv[1] if len(sys.argv) > 1 else "aot_eager"), flush=True)
