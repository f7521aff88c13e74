"""Functions of tensors as CUDA graphs: a GPU replays their kernels without waiting for Python to start each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...]
WARM_UP = 2  # passes before one is recorded, in which kernels are compiled and libraries take their memory


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class Recorder:
    """Recordings of one function of tensors on CUDA, one for each shape of its arguments.

    The function must do the same at every call: whatever else it reads or writes lies where it lay before, Python code
    of it changes nothing that matters later, and what it returned is overwritten by the next call. One that waits for
    the device cannot be recorded and is called as it is.
    """

    def __init__(self, stream: torch.cuda.Stream | None = None, undo: Callable[[], None] = lambda: None) -> None:
        """Record on a stream, while other threads may go on calling CUDA; by default on one of its own, while they may
        not.

        Before there is a recording the function is called several times: `undo` takes back what it added to tensors
        that it does not return.
        """
        self.stream, self.undo = stream, undo
        self.recordings: dict[tuple[torch.Size, ...], _Recording] = {}
        self.recordable = True

    def run(self, function: Callable[..., Tensors], *arguments: Tensor) -> Tensors:
        """Return what the function gives for these arguments, from its recording where there is one or can be."""
        shapes = tuple(argument.shape for argument in arguments)
        if self.recordable and shapes not in self.recordings:
            try:
                self.recordings[shapes] = _record(function, arguments, self.stream)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                cause = error.__context__ or error  # the end of a recording fails too, and says less
                logger.warning("not recorded as a CUDA graph: %s", str(cause).strip().split("\n")[0])
                self.recordable = False
            self.undo()
        if not self.recordable:
            return function(*arguments)
        recording = self.recordings[shapes]
        for kept, given in zip(recording.inputs, arguments, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def forget(self) -> None:
        """Drop the recordings: what the function reads lies elsewhere now."""
        self.recordings.clear()


def _record(function: Callable[..., Tensors], arguments: Tensors, stream: torch.cuda.Stream | None) -> _Recording:
    inputs = tuple(argument.clone() for argument in arguments)
    current, aside = torch.cuda.current_stream(), stream or torch.cuda.Stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function(*inputs)
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    mode = "global" if stream is None else "thread_local"
    with (
        torch.cuda.stream(current),  # one that fails leaves its own stream the current one
        torch.cuda.graph(graph, stream=stream, capture_error_mode=mode),
    ):
        outputs = function(*inputs)
    return _Recording(graph, inputs, outputs)
