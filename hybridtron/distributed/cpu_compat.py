"""Let megatron-core train on CPU with gloo. Where CUDA is usable, nothing here has an effect.

megatron-core names the CUDA device in many places, some as literals ("cuda", "torch.cuda.FloatTensor"). Inside
`cuda_calls_on_cpu` those mean the CPU: a few functions of torch.cuda are replaced and a torch-function mode rewrites
device arguments; and a group of gloo has one thread. All is undone on leaving. What stays are corrections of
megatron-core's own modules, for defects that only show without CUDA or Transformer Engine: nobody but megatron-core
calls the functions that they replace.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from hybridtron.backends.transformer_engine.installation import hide_unusable_transformer_engine
from hybridtron.distributed.megatron_versions import silence_known_messages, unsupported
from hybridtron.distributed.process_groups.gloo import one_thread_for_each_group
from hybridtron.errors import UserError
from hybridtron.imports import collector_paused, hidden

# What megatron-core imports where it is installed, for features that are not used here or need CUDA.
UNUSED = ("apex", "fused_weight_gradient_mlp_cuda", "nvtx", "tensorboard", "torch.utils.tensorboard", "wandb")


def _names_cuda(device: object) -> bool:
    """Return True for a device, or the name of one, that is on CUDA."""
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


@contextlib.contextmanager
def cuda_calls_on_cpu() -> Iterator[None]:
    """Send calls that name CUDA to the CPU inside the block; import megatron-core there, not before.

    A Transformer Engine that is broken looks absent to megatron-core from then on.
    Raises UserError when the installed megatron-core is not one that this was written for.
    """
    hide_unusable_transformer_engine()
    silence_known_messages()
    if torch.cuda.is_available():
        yield
        return
    if problem := unsupported(version("megatron-core")):
        raise UserError(problem)
    replacements = _cuda_replacements()
    with (
        patch.multiple(torch.cuda, **replacements),
        patch.object(torch.cuda.random, "get_rng_state", replacements["get_rng_state"]),
        one_thread_for_each_group(),
    ):
        _correct_megatron()
        with _CudaToCpu():
            yield


@contextlib.contextmanager
def calls_as_they_are() -> Iterator[None]:
    """Leave the device arguments of calls inside the block alone, none of which names CUDA.

    To look at every call costs a third of a step of a small model.
    """
    mode = _get_current_function_mode()
    if not isinstance(mode, _CudaToCpu):
        yield
        return
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()


@functools.cache
def _correct_megatron() -> None:
    """Import megatron-core's modules and correct them, once in a process."""
    with _import_uncompiled():
        import megatron.core.pipeline_parallel.schedules as schedules

        schedules.backward_step = calls_as_they_are()(schedules.backward_step)
        _correct_moe_dispatch()
        _correct_uneven_collectives()
        _leave_compiler_out_of_optimizers()


@contextlib.contextmanager
def _import_uncompiled() -> Iterator[None]:
    """Import megatron-core without torch.compile, whose fusions would need a C++ compiler and seconds at start-up, and
    without optional packages."""

    def uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return function if function is not None else lambda f: f

    compile_function = torch.compile
    torch.compile = uncompiled  # type: ignore[assignment]
    try:
        with collector_paused(), hidden(*UNUSED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Transformer Engine and apex are absent is known
            yield
    finally:
        torch.compile = compile_function


def _cuda_replacements() -> dict[str, Any]:
    """Return what stands for functions of torch.cuda, by their names."""
    stream = _IdleStream()
    return {
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


def _leave_compiler_out_of_optimizers() -> None:
    """Let torch's Adam and AdamW work without torch.compile, which torch imports to switch it off in them.

    It takes half a second to import. What was imported or used before stays as it is.
    """
    optimizer = torch.optim.Optimizer
    if "torch._dynamo" in sys.modules:
        return
    for method in (optimizer.add_param_group, optimizer.zero_grad, optimizer.state_dict, optimizer.load_state_dict):
        function = inspect.unwrap(method)
        setattr(function, "__dynamo_disable", function)
    update = inspect.unwrap(torch.optim.Adam.step)

    @functools.wraps(update)
    def step(self: torch.optim.Adam, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return update(self, closure)

    torch.optim.Adam.step = step  # type: ignore[method-assign]


def _correct_moe_dispatch() -> None:
    """Make split sizes numpy arrays, which megatron-core does on CUDA alone."""
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    def to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    dispatcher.maybe_move_tensor_to_cpu = to_cpu


def _correct_uneven_collectives() -> None:
    """Pad shards of tokens to the longest before gloo gathers or scatters them: it knows equal lengths only."""
    import megatron.core.tensor_parallel.mappings as mappings

    gather, reduce_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def padded(shard: torch.Tensor, length: int) -> torch.Tensor:
        return torch.cat([shard, shard.new_zeros(length - len(shard), *shard.shape[1:])])

    def gather_uneven(shard: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if sizes is None or len(set(sizes)) == 1:
            return gather(shard, group, sizes, use_global_buffer)
        shards = gather(padded(shard, max(sizes)), group).split(max(sizes))
        return torch.cat([whole[:size] for whole, size in zip(shards, sizes, strict=True)])

    def reduce_scatter_uneven(
        whole: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if sizes is None or len(set(sizes)) == 1:
            return reduce_scatter(whole, group, sizes, use_global_buffer)
        shards = torch.cat([padded(shard, max(sizes)) for shard in whole.split(list(sizes))])
        return reduce_scatter(shards, group)[: sizes[group.rank()]]

    mappings._gather_along_first_dim = gather_uneven
    mappings._reduce_scatter_along_first_dim = reduce_scatter_uneven
