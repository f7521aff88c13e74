"""Forward and backward passes of training steps as CUDA graphs.

What is recorded: from tokens and labels on the device to losses, and to gradients in megatron-core's `main_grad`
buffers, which stay where they are. What is not: zeroing these buffers, their reduction over processes, the optimizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridtron.ops.cuda_graph import Recorder
from hybridtron.ops.device import to_device

Passes = Callable[[Sequence[Any]], list[Tensor]]


def can_record(device: torch.device) -> bool:
    """Return whether passes on this device can become CUDA graphs."""
    return device.type == "cuda"


@contextlib.contextmanager
def aside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Start the kernels of the block on a stream, if there is one, after what was started before and before what
    follows.

    A recording must not touch the default stream. Autograd adds up a parameter's gradients on the stream on which its
    accumulator was made, which megatron-core's data parallelism does: it is built inside such a block, too.
    """
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


class RecordedPasses:
    """The passes of training steps, each replayed from a recording of a step with as many micro-batches."""

    def __init__(
        self,
        passes: Passes,
        zero_gradients: Callable[[], None],
        replicas: Sequence[Any],
        device: torch.device,
        stream: torch.cuda.Stream,
    ) -> None:
        """Record `passes`: it adds up the gradients of micro-batches in the replicas, has megatron-core finalize them,
        and returns the losses [b, kinds] of each micro-batch."""
        self.passes, self.replicas, self.device, self.stream = passes, replicas, device, stream
        self.config = replicas[0].config
        self.parameters = [parameter for replica in replicas for parameter in replica.parameters()]
        self.recorder = Recorder(stream, zero_gradients)
        self.replays = 0

    def run(self, micro_batches: Sequence[Any], is_watched: bool = False) -> list[Tensor]:
        """Return what `passes` returns, or the losses of all micro-batches in one tensor, which the next call
        overwrites; gradients are final.

        Python code in the passes does not run in a replay: where it has something to do, as in a step that is profiled
        or otherwise watched, they run as they are. Only the latest number of micro-batches has a recording: numbers
        follow each other in stages, and a recording holds the memory of a step.
        """
        with aside(self.stream):
            if is_watched or self.config.timers is not None or self._has_hooks():
                return self.passes(micro_batches)
            columns = zip(*(each[:2] for each in micro_batches), strict=True)
            tokens, labels = (to_device(torch.stack(column), self.device) for column in columns)  # [M, b, s]
            if (tokens.shape, labels.shape) not in self.recorder.recordings:
                self.recorder.forget()
            (losses,) = self.recorder.run(self._without_reduction, tokens, labels)
            self.replays += self.recorder.recordable
            self.config.finalize_model_grads_func(self.replicas)
            return [losses.flatten(0, 1)]

    def _has_hooks(self) -> bool:
        """Return whether a module calls other code in its passes, or a parameter with its gradient."""
        return any(
            each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
            for replica in self.replicas
            for each in replica.modules()
        ) or any(each._backward_hooks or each._post_accumulate_grad_hooks for each in self.parameters)

    def _without_reduction(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor]:
        """Compute the losses [M, b, kinds] and the gradients of this process."""
        finalize, self.config.finalize_model_grads_func = self.config.finalize_model_grads_func, None
        try:
            return (torch.stack(self.passes(list(zip(tokens, labels, strict=True)))),)
        finally:
            self.config.finalize_model_grads_func = finalize
