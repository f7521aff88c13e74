"""FP8 emulation of a model that is laid out over processes: scales do not depend on the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from hybridtron.distributed.config import AMAX_HISTORY
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.ops.fp8.linear import Operands
from hybridtron.ops.fp8.state import FP8State
from hybridtron.tensors import TensorSpec


class FP8Memory(Protocol):
    """What FP8 linears remember between steps, the same in all processes. They count statistics while it `collects`."""

    collects: bool

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint stores. Raises ValueError for another content."""
        ...


class FP8Linears(Protocol):
    """The FP8 linears of a model in one process: emulated, or Transformer Engine's."""

    @property
    def state(self) -> FP8Memory:
        """Return what they remember."""
        ...

    def end_step(self, applied: bool) -> None:
        """Update what they remember after a step; all processes call this."""
        ...

    def take_statistics(self) -> dict[str, Any]:
        """Return statistics by linear and role since the last call; all processes call this."""
        ...


class FP8Emulation:
    """The FP8 linears of a model and their state, in one process.

    An operand's amax is the largest of the processes that hold parts of it: those of tensor and context parallelism,
    and of an expert those that hold its channels. So a micro-batch has the same scales in every layout; only experts
    that are sent tokens of several micro-batches (laid out over data-parallel processes) share their scales.
    """

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        linears: Mapping[str, TensorSpec],
        recipe: str,
        parallel_context: ParallelContext,
    ) -> None:
        """Make the linears of these runs of layers multiply in FP8; `linears` are those of the whole model, as name
        and weight."""
        self.parallel_context = parallel_context
        experts = {name: spec.shape[0] if spec.experts else 1 for name, spec in linears.items()}
        self.state = FP8State(recipe, experts, AMAX_HISTORY, parallel_context.device)
        modules = {name: module for chunk in chunks for name, module in chunk.named_modules()}
        for name, spec in linears.items():
            parent, _, part = name.rpartition(".")
            if spec.experts and parent in modules:
                shard = parallel_context.shards.expert
                held = spec.shape[0] // shard.size
                own = slice(shard.rank * held, (shard.rank + 1) * held)
                modules[parent].fp8[part] = Operands.of(self.state, name, own, self._reduce_expert)
            elif name in modules:
                modules[name].fp8 = Operands.of(self.state, name, slice(0, 1), self._reduce_operand)

    def end_step(self, applied: bool) -> None:
        """Update the scales of recipe delayed after a step; all processes call this."""
        self.state.end_step(self._reduce_all, applied)

    def take_statistics(self) -> dict[str, Any]:
        """Return the statistics of all linears since they began to be collected; all processes call this."""
        return self.state.take_statistics(lambda tensor: dist.all_reduce(tensor), self._reduce_all)

    def _reduce_operand(self, amax: Tensor) -> None:
        """Take the largest over the processes that hold other parts of an operand."""
        self._reduce(amax, self.parallel_context.tensor_group, self.parallel_context.context_group)

    def _reduce_expert(self, amax: Tensor) -> None:
        """Take the largest over the processes that hold other parts of an operand of experts, whose channels may be cut
        over processes with other micro-batches."""
        self._reduce_operand(amax)
        self._reduce(amax, self.parallel_context.expert_groups.tensor)

    def _reduce(self, amax: Tensor, *groups: dist.ProcessGroup) -> None:
        if amax.is_meta:  # a dry run, which does not count scalars
            return
        for group in groups:
            if group.size() > 1:
                dist.all_reduce(amax, dist.ReduceOp.MAX, group=group)

    def _reduce_all(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
