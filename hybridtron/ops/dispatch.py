"""Every operation's implementations and the condition under which each is taken.

An op takes the first implementation whose condition its arguments meet; `hybridtron doctor` prints this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridtron.ops.elementwise.precision import accumulation_dtype, under_transforms
from hybridtron.ops.native.declarations import PLAIN
from hybridtron.ops.native.library import kernels_for, load

MAX_CONV_TAPS = 16  # MOST_TAPS of native/mamba2.c
MAX_STATES = 64  # MOST_STATES of native/selective_scan.c
DIRECT_TAPS = 20  # of a long convolution that are added up one by one
PAIRS_FACTOR = 6  # d^2 tokens; pairs are as fast as transforms at 6 (d = 8), 8 (16), 9 (32) and 4.5 d^2 (64) on a core


class Implementation(NamedTuple):
    """One way to compute an operation. `accepts` is called with what the op gives to `select`."""

    name: str
    condition: str
    accepts: Callable[..., bool]


class Operation(NamedTuple):
    """One row of the table. `sample` returns float32 arguments for `select`, as of a small ordinary call."""

    label: str
    sample: Callable[[torch.device], tuple[Any, ...]]
    implementations: tuple[Implementation, ...]


def select(operation: str, *arguments: Any) -> Callable[..., Any]:
    """Return the function of the implementation that takes these arguments."""
    for implementation in OPERATIONS[operation].implementations:
        if implementation.accepts(*arguments):
            return _functions[operation, implementation.name]
    raise LookupError(f"{operation}: no implementation takes these arguments")


def register(operation: str, functions: dict[str, Callable[..., Any]]) -> None:
    """Set the functions of an operation, one for each implementation in the table."""
    expected = [implementation.name for implementation in OPERATIONS[operation].implementations]
    if list(functions) != expected:
        raise ValueError(f"{operation}: implementations {list(functions)}, expected {expected}")
    _functions.update({(operation, name): function for name, function in functions.items()})


_functions: dict[tuple[str, str], Callable[..., Any]] = {}


def implementation_table(device: torch.device) -> list[dict[str, Any]]:
    """Return, for each operation, what an ordinary float32 call takes on the device and all implementations."""
    table = []
    for name, (label, sample, implementations) in OPERATIONS.items():
        arguments = sample(device)
        table.append(
            {
                "operation": name,
                "label": label,
                "taken": next(one.name for one in implementations if one.accepts(*arguments)),
                "implementations": [{"name": one.name, "condition": one.condition} for one in implementations],
            }
        )
    return table


def _native(*tensors: Tensor) -> bool:
    return kernels_for(*tensors) is not None


def _native_attention(scale: float, *tensors: Tensor) -> bool:
    """Return whether the kernels can work on scores of these tensors, which are in the dtype of accumulation."""
    fits = accumulation_dtype(tensors[0]) is torch.float32 and all(t.is_cpu and type(t) in PLAIN for t in tensors)
    return scale > 0 and fits and not under_transforms() and load()[0] is not None


def _native_mamba2(packed: Tensor, taps: int, *weights: Tensor) -> bool:
    return taps <= MAX_CONV_TAPS and packed.stride(-1) == 1 and kernels_for(packed, *weights) is not None


def _native_scan(A: Tensor, *others: Tensor) -> bool:
    return A.shape[1] <= MAX_STATES and kernels_for(A, *others) is not None


def _native_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return x.stride(-1) == 1 and kernels_for(x, cos, sin) is not None


def _on_cuda(x: Any, *_: Any) -> bool:
    return x.is_cuda


def _otherwise(name: str) -> Implementation:
    return Implementation(name, "otherwise", lambda *_: True)


def _one(device: torch.device) -> tuple[Tensor]:
    return (torch.ones(1, 1, device=device),)


def _none(device: torch.device) -> tuple[()]:
    return ()


_TRANSFORMED = Implementation("plain PyTorch", "under a torch.func transform", lambda *_: under_transforms())
_KERNELS = Implementation("C kernels", "float32 on a CPU", _native)
_BLOCKS = _otherwise("PyTorch, in blocks of rows")
_CHUNKS = (Implementation("PyTorch, in chunks", "always", lambda *_: True),)
_ATTENTION = (
    _TRANSFORMED,
    Implementation("scaled_dot_product_attention", "on CUDA", lambda _, q, *rest: q.is_cuda),
    Implementation("C kernels for the softmax", "float32 or narrower on a CPU, scale > 0", _native_attention),
    _otherwise("PyTorch, in blocks of queries"),
)

OPERATIONS: dict[str, Operation] = {
    "attention": Operation("attention", lambda device: (1.0, *_one(device)), _ATTENTION),
    "attention_with_sinks": Operation("attention with sinks", lambda device: (1.0, *_one(device)), _ATTENTION),
    "apply_rotary": Operation(
        "rotary embedding",
        lambda device: 3 * _one(device),
        (
            _TRANSFORMED,
            Implementation("C kernels", "float32 on a CPU, channels contiguous", _native_rotary),
            _otherwise("PyTorch, into the result"),
        ),
    ),
    "selective_scan": Operation(
        "mamba1 scan",
        _one,
        (
            _TRANSFORMED,
            Implementation("C kernels", f"float32 on a CPU, at most {MAX_STATES} states", _native_scan),
            _otherwise("PyTorch, in tiles"),
        ),
    ),
    "mamba2_core": Operation(
        "mamba2 scan",
        lambda device: (*_one(device), 4),
        (
            Implementation(
                "C kernels",
                f"float32 on a CPU, at most {MAX_CONV_TAPS} taps, channels contiguous, under no torch.func transform",
                _native_mamba2,
            ),
            _otherwise("short_conv, ssd and gated_rms_norm"),
        ),
    ),
    "ssd": Operation("ssd", _none, (_TRANSFORMED, _otherwise("PyTorch, in chunks and tiles"))),
    "linear_attention": Operation("linear attention", _none, _CHUNKS),
    "gla": Operation("gla", _none, _CHUNKS),
    "rwkv6": Operation("rwkv6", _none, _CHUNKS),
    "gated_delta_rule": Operation("gated delta rule", _none, _CHUNKS),
    "short_conv": Operation(
        "short convolution",
        _one,
        (
            Implementation(
                "PyTorch, shifted multiply-adds",
                "under a torch.func transform or on CUDA",
                lambda x: under_transforms() or x.is_cuda,
            ),
            _otherwise("PyTorch, in tiles"),
        ),
    ),
    "long_conv": Operation(
        "long convolution",
        lambda device: (DIRECT_TAPS + 1,),
        (
            Implementation("short_conv", f"at most {DIRECT_TAPS} taps", lambda taps: taps <= DIRECT_TAPS),
            _otherwise("convolve, in segments"),
        ),
    ),
    "convolve": Operation("Fourier transforms", _none, (_TRANSFORMED, _otherwise("PyTorch, with its own gradient"))),
    "outer_conv": Operation(
        "convolution of outer products",
        lambda device: (1, 8),
        (
            Implementation(
                "PyTorch, by pairs of tokens",
                f"at most {PAIRS_FACTOR} head_dim^2 tokens",
                lambda seq_len, head_dim: seq_len <= PAIRS_FACTOR * head_dim * head_dim,
            ),
            _otherwise("PyTorch, by Fourier transforms"),
        ),
    ),
    "grouped_linear": Operation(
        "experts", _none, (Implementation("PyTorch, a matrix product per expert", "always", lambda *_: True),)
    ),
    "rms_norm": Operation(
        "rms norm",
        lambda device: 2 * _one(device),
        (_TRANSFORMED, Implementation("torch.nn.functional.rms_norm", "on CUDA", _on_cuda), _KERNELS, _BLOCKS),
    ),
    "gated_rms_norm": Operation("gated rms norm", _none, (_TRANSFORMED, _BLOCKS)),
    "swiglu": Operation("swiglu", _one, (_TRANSFORMED, _KERNELS, _BLOCKS)),
    "relu2": Operation("squared relu", _one, (_TRANSFORMED, _KERNELS, _BLOCKS)),
    "cross_entropy": Operation("cross-entropy", _none, (_TRANSFORMED, _BLOCKS)),
}
