"""A stand-in for CUDA graphs on a CPU: the operations of a call, with the tensors that each had, done again.

As in a CUDA graph nothing of Python runs in a replay: numbers, branches and addresses are those of the recording, and
what a call makes is lost before the next one. What would wait for a GPU, or copy from the host, fails in a recording.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridtron.distributed import engine
from hybridtron.ops import cuda_graph
from hybridtron.ops.device import choosing_for

aten = torch.ops.aten
READS = (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__)
BY_MASK = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)  # with one they count its ones


class Tape(TorchDispatchMode):
    """The operations done inside, in order; more than `most` fail."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.calls: list[tuple[Callable[..., Any], Any, Any, dict[int, Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args) or len(self.calls) >= self.most:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        held = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        made = {i: tensor for i, tensor in enumerate(_tensors(result)) if _memory(tensor) not in held}
        if made or func._schema.is_mutable:  # others are views
            self.calls.append((func, args, kwargs, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again, their results going where the first ones lay, of which nothing is left."""
        for *_, made in self.calls:
            for tensor in made.values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        for func, args, kwargs, made in self.calls:
            results = _tensors(func(*args, **kwargs))
            for i, tensor in made.items():
                tensor.copy_(results[i])


class _Reads(TorchFunctionMode):
    """Refuse to read values of tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"{func.__name__}: operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any) -> bool:
    """Return whether an operation on CUDA tensors waits for values, or is given numbers by the host."""
    if func is aten.lift_fresh.default:
        return args[0].dim() > 0  # a number by itself becomes part of a kernel's arguments
    if func.overloadpacket in BY_MASK:
        return any(index.dtype is torch.bool for index in args[1] if index is not None)
    return any(tag in func.tags for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors with memory: those in sparse form are zeros, the gradients of weights that have theirs."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    assert all(tensor._nnz() == 0 for tensor in tensors if tensor.is_sparse)
    return [tensor for tensor in tensors if not tensor.is_sparse]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def tapes_for_graphs(most: int = 1 << 30) -> Iterator[None]:
    """Let tapes of at most so many operations take the place of CUDA graphs in training on a CPU."""

    def record(function: Callable[..., Any], arguments: Any, stream: Any) -> Any:
        inputs = tuple(argument.clone() for argument in arguments)
        for _ in range(cuda_graph.WARM_UP):
            function(*inputs)
        with _Reads(), Tape(most) as tape:
            outputs = function(*inputs)
        return cuda_graph._Recording(tape, inputs, outputs)

    with pytest.MonkeyPatch.context() as patch, without_c_kernels():
        patch.setattr(cuda_graph, "_record", record)
        patch.setattr(engine, "can_record", lambda device: True)
        yield


def without_c_kernels() -> contextlib.AbstractContextManager[None]:
    """Take PyTorch's operations, which a tape can see, inside the block."""
    return choosing_for("cuda")
