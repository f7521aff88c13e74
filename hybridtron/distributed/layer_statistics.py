"""Per-layer norms of one training step: activations, gradients and updates, the same in every layout.

Squares are added up in each process, so that every element counts once over all processes (an activation equally often
everywhere), and all sums are reduced in one message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import ChainedOptimizer
from torch import Tensor, nn

from hybridtron.distributed.optimizer.held_parameters import counted_parameters
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.model.residual.stream import Stream
from hybridtron.tensors import TensorSpec

EMBEDDING, OUTPUT = "embedding", "output"  # beside the layers, which are named by their numbers
SUMS = ("output", "residual", "elements", "gradient", "update", "weight")  # squares, and a number of elements


class LayerStatistics:
    """The statistics of the training step that follows; the engine calls `before_update` and `after_update` in it."""

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        specs: Mapping[str, TensorSpec],
        optimizer: ChainedOptimizer,
        parallel_context: ParallelContext,
    ) -> None:
        """Watch the layers of `chunks` until `take` is called."""
        self.optimizer, self.parallel_context = optimizer, parallel_context
        layers = dict.fromkeys(_layer(name) for name in specs)
        numbers = sorted((layer for layer in layers if layer.isdecimal()), key=int)
        self.rows = {layer: row for row, layer in enumerate([EMBEDDING, *numbers, OUTPUT])}
        self.sums = torch.zeros(len(self.rows), len(SUMS), dtype=torch.float64, device=parallel_context.device)
        self.before: list[Tensor] = []
        self.hooks = [
            module.register_forward_hook(partial(self._add_activations, match[1]))
            for chunk in chunks
            for name, module in chunk.named_modules()
            if (match := re.fullmatch(r"layers\.(\d+)", name))
        ]

    def before_update(self) -> None:
        """Add up gradients and weights, and keep a copy of the weights that this process updates."""
        self.before = []
        for layer, main in self._counted():
            self._add(layer, "weight", main)
            if main.grad is not None:
                self._add(layer, "gradient", main.grad)
            self.before.append(main.detach().clone())

    def after_update(self) -> None:
        """Add up the changes of the weights."""
        for (layer, main), before in zip(self._counted(), self.before, strict=True):
            self._add(layer, "update", main.detach() - before)
        self.before = []

    def take(self) -> dict[str, dict[str, float | None]]:
        """Return the statistics of each layer; all processes call this, once.

        `output_rms`: root mean square of what a layer adds to the residual stream. `residual_rms`: of the stream after
        it. `grad_norm`: norm of the gradients of a layer's parameters, before clipping. `update_ratio`: norm of their
        update over their norm before it. None where a part of the model has no such number.
        """
        self.stop()
        dist.all_reduce(self.sums)
        sums = [dict(zip(SUMS, row, strict=True)) for row in self.sums.tolist()]
        return {layer: _numbers(sums[row], layer.isdecimal()) for layer, row in self.rows.items()}

    def stop(self) -> None:
        """Watch the layers no longer."""
        for hook in self.hooks:
            hook.remove()

    def restart(self) -> None:
        """Forget what was added up."""
        self.sums.zero_()
        self.before = []

    def _add_activations(self, layer: str, module: Any, inputs: tuple[Any, ...], output: Stream) -> None:
        """Add up what a layer adds to the residual stream, and the stream after it; of the first also that before."""
        x, after = inputs[0].states[0].detach(), output.states[0].detach()
        self._add(layer, "output", module.residual.added(inputs[0].states, output.states).detach())
        self._add(layer, "residual", after)
        self.sums[self.rows[layer], SUMS.index("elements")] += after.numel()
        if layer == "0":
            self._add(EMBEDDING, "residual", x)
            self.sums[self.rows[EMBEDDING], SUMS.index("elements")] += x.numel()

    def _add(self, layer: str, name: str, values: Tensor) -> None:
        """Add the squares of values to a sum."""
        norm = torch.linalg.vector_norm(values, dtype=torch.float32)
        self.sums[self.rows[layer], SUMS.index(name)] += norm.double().square()

    def _counted(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what this process updates and no process of a lower rank does, with its layer."""
        for parameter, main in counted_parameters(self.optimizer, self.parallel_context):
            yield _layer(parameter.full_name), main


def _layer(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    first, _, rest = name.partition(".")
    return rest.split(".")[0] if first == "layers" else EMBEDDING if first == "embedding" else OUTPUT


def _numbers(sums: Mapping[str, float], is_layer: bool) -> dict[str, float | None]:
    """Return the statistics of a layer, or of embedding or output, from its sums."""
    elements, weight = sums["elements"], sums["weight"] ** 0.5
    return {
        "output_rms": (sums["output"] / elements) ** 0.5 if elements and is_layer else None,
        "residual_rms": (sums["residual"] / elements) ** 0.5 if elements else None,
        "grad_norm": sums["gradient"] ** 0.5,
        "update_ratio": sums["update"] ** 0.5 / weight if weight else None,
    }
