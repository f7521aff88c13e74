"""Lets megatron-core 0.16.1 train on CPU with gloo. Does nothing where CUDA is usable.

megatron-core names the CUDA device in many places, some as literals ("cuda", "torch.cuda.FloatTensor"). `install`
sends those to the CPU: it replaces a few functions of torch.cuda, enters a torch-function mode that rewrites device
arguments, and works around defects of this version that only show without CUDA or Transformer Engine.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hybridtron.errors import UserError

MEGATRON_VERSION = "0.16.1"
_installed = False


def _names_cuda(device: object) -> bool:
    return str(device).startswith("cuda") if isinstance(device, str | torch.device) else False


class _CudaToCpu(TorchFunctionMode):
    """Device arguments that name CUDA mean the CPU; type names say CUDA, since megatron-core compares with those."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs and _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        elif func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        elif func is torch.Tensor.cuda:
            return args[0]
        elif func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


class _IdleStream:
    """A CUDA stream or event on which nothing ever waits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record_event(self, *args: Any) -> _IdleStream:
        return self

    def query(self) -> bool:
        return True

    def _nothing(self, *args: Any) -> None: ...

    wait = wait_event = wait_stream = synchronize = record = _nothing


def install() -> None:
    """Make megatron-core usable on this machine; call before importing it. Repeated calls do nothing.

    Raises UserError when the installed megatron-core is not the version that this was written for.
    """
    global _installed
    if _installed or torch.cuda.is_available():
        return
    found = version("megatron-core")
    if found != MEGATRON_VERSION:
        raise UserError(f"megatron-core {found} is installed; on a CPU, hybridtron needs {MEGATRON_VERSION}")
    _replace_cuda_functions()
    with _quiet_import():
        _mend_moe()
        _mend_uneven_collectives()
    _CudaToCpu().__enter__()
    _installed = True


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Import megatron-core without torch.compile: its fusions would need a C++ compiler and seconds at start-up."""

    def uncompiled(function: Callable | None = None, **_: Any) -> Any:
        return function if function is not None else lambda f: f

    compile_function = torch.compile
    torch.compile = uncompiled  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Transformer Engine and apex are absent is known
            yield
    finally:
        torch.compile = compile_function


def _replace_cuda_functions() -> None:
    stream = _IdleStream()
    replacements: dict[str, Any] = {
        "current_device": lambda: "cpu",  # megatron-core uses it as a device, not as an index
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda *_: contextlib.nullcontext(),
        "Stream": _IdleStream,
        "Event": _IdleStream,
        "manual_seed": lambda seed: torch.manual_seed(seed) and None,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.random.get_rng_state = torch.cuda.get_rng_state


def _mend_moe() -> None:
    """Split sizes become numpy only on CUDA."""
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    def to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    dispatcher.maybe_move_tensor_to_cpu = to_cpu


def _mend_uneven_collectives() -> None:
    """Gloo gathers and scatters equal pieces only: those of tokens, of which processes have more or fewer, are filled
    up to the longest."""
    import megatron.core.tensor_parallel.mappings as mappings

    gather, reduce_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def filled(piece: torch.Tensor, length: int) -> torch.Tensor:
        return torch.cat([piece, piece.new_zeros(length - len(piece), *piece.shape[1:])])

    def gather_uneven(piece: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if sizes is None or len(set(sizes)) == 1:
            return gather(piece, group, sizes, use_global_buffer)
        pieces = gather(filled(piece, max(sizes)), group).split(max(sizes))
        return torch.cat([whole[:size] for whole, size in zip(pieces, sizes, strict=True)])

    def reduce_scatter_uneven(
        whole: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if sizes is None or len(set(sizes)) == 1:
            return reduce_scatter(whole, group, sizes, use_global_buffer)
        pieces = torch.cat([filled(piece, max(sizes)) for piece in whole.split(list(sizes))])
        return reduce_scatter(pieces, group)[: sizes[group.rank()]]

    mappings._gather_along_first_dim = gather_uneven
    mappings._reduce_scatter_along_first_dim = reduce_scatter_uneven
