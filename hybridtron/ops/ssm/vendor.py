"""State spaces by the package mamba-ssm (Gu & Dao 2023, Dao & Gu 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.dispatch import Implementation
from hybridtron.ops.ssm.mamba2_buffers import Sizes
from hybridtron.ops.vendor import on_cuda, usable, vendor_function

_SSD = "mamba_ssm.ops.triton.ssd_combined"
_SELECTIVE_SCAN = "mamba_ssm.ops.selective_scan_interface"
_CONVOLUTION = "causal_conv1d.cpp_functions"  # which mamba-ssm calls, and imports without where it is missing
_HALF = (torch.bfloat16, torch.float16)
_CHUNK = 256  # tokens; shorter chunks write and read more states
_STATES = 256  # of a channel or head, at most
_TAPS = (2, 4)  # of the convolution, at least and at most
_ALIGNED = 8  # halves in the 16 bytes that the convolution loads at once
_NORMED = 1 << 15  # halves that one program of the norm holds, at most
_REACH = 1 << 31  # elements of a tensor, which offsets of 32 bits reach


def mamba_ssm_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk_size: int) -> Tensor:
    """Compute `ssd` of x [b, s, h, p], dt [b, s, h], A [h], B and C [b, s, g, n] and D [h].

    The package has chunks of its own; the last one may be shorter. dt, A and D are float32.
    """
    function = vendor_function(_SSD, "mamba_chunk_scan_combined")
    skip = None if D is None else D.float()
    return function(x, dt.float(), A.float(), B, C, _CHUNK, D=skip)


def mamba_ssm_mamba2(
    sizes: Sizes,
    eps: float,
    packed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
) -> Tensor:
    """Compute `mamba2_core` in one function, which keeps its inputs and the scan's result and computes the rest again.

    The package takes [b, s, z + x + B + C + dt] with tokens and channels contiguous: it writes the gradient of z into
    a view of a tensor with the strides of this one, and loses it where sequences and tokens cannot be joined.
    dt comes in the dtype of packed, but its kernels compute steps and their sums in float32, as ours are. dt_bias, A
    and D are given in float32, the dtype of their gradients. Its norm is over the heads that share B and C, after z.
    """
    function = vendor_function(_SSD, "mamba_split_conv1d_scan_combined")
    sequences = packed.transpose(0, 1).contiguous()
    y = function(
        sequences.view(sequences.shape),  # for the strides of sequences of one token, which the convolution looks at
        conv_weight,
        conv_bias.to(conv_weight.dtype),
        dt_bias.float(),
        A.float(),
        D.float(),
        _CHUNK,
        activation="silu",
        rmsnorm_weight=norm_weight,
        rmsnorm_eps=eps,
        headdim=sizes.head_dim,
        ngroups=sizes.groups,
        norm_before_gate=False,
    )  # [b, s, heads * p]
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)  # its norm refuses the gradient of a sum, which has strides of zero
    return y.transpose(0, 1)


def mamba_ssm_selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute `selective_scan` of x and dt [b, s, d], A [d, n], B and C [b, s, n] and D [d].

    The package takes [b, d, s] with contiguous tokens and one dtype for x, dt, B and C: that of dt, float32, since its
    digits are those of the decays.
    """
    function = vendor_function(_SELECTIVE_SCAN, "selective_scan_fn")
    inputs, steps, b, c = (t.transpose(1, 2).contiguous().float() for t in (x, dt, B, C))
    return function(inputs, steps, A.float(), b, c, D.float()).transpose(1, 2).to(x.dtype)


def _accepts_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> bool:
    fits = A.dim() == 1 and x.dtype in _HALF and x.dtype == B.dtype == C.dtype and B.shape[-1] <= _STATES
    reached = _reached(*x.shape, *B.shape[2:]) and all(_extent(t) <= _REACH for t in (x, B, C))
    return on_cuda(x, dt, A, B, C, D) and fits and reached and usable(_SSD)


def _accepts_mamba2(sizes: Sizes, packed: Tensor, *weights: Tensor) -> bool:
    if not on_cuda(packed, *weights) or packed.dtype not in _HALF or any(t.dtype == torch.float64 for t in weights):
        return False
    if not _TAPS[0] <= sizes.taps <= _TAPS[1] or sizes.inner % _ALIGNED or sizes.channels % _ALIGNED:
        return False
    fits = sizes.state_dim <= _STATES and sizes.inner // sizes.groups <= _NORMED
    fits = fits and sizes.seq_len * sizes.batch > 1  # the package does not align one token for its convolution
    scan = (sizes.batch, sizes.seq_len, sizes.heads, sizes.head_dim, sizes.groups, sizes.state_dim)
    return fits and packed.numel() <= _REACH and _reached(*scan) and usable(_SSD) and usable(_CONVOLUTION)


def _reached(batch: int, seq_len: int, heads: int, head_dim: int, groups: int, state_dim: int) -> bool:
    """Return whether the scan's kernels reach all that it keeps of chunks: states, and products of B and C."""
    return batch * -(-seq_len // _CHUNK) * max(heads * head_dim * state_dim, groups * _CHUNK**2) <= _REACH


def _extent(x: Tensor) -> int:
    """Return how many elements of memory x spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def _accepts_selective_scan(A: Tensor, *others: Tensor) -> bool:
    if not on_cuda(A, *others) or A.shape[1] > _STATES:
        return False
    return all(t.dtype != torch.float64 for t in (A, *others)) and usable(_SELECTIVE_SCAN)


SSD = Implementation(
    "mamba-ssm",
    f"on CUDA, bfloat16 or float16, rates of heads, at most {_STATES} states, tensors of at most 2^31 elements",
    _accepts_ssd,
    mamba_ssm_ssd,
)
MAMBA2 = Implementation(
    "mamba-ssm",
    f"on CUDA, bfloat16 or float16, {_TAPS[0]} to {_TAPS[1]} taps, at most {_STATES} states, channels of x and those "
    f"convolved multiples of {_ALIGNED}, at most {_NORMED} normed together, tensors of 2 tokens to 2^31 elements",
    _accepts_mamba2,
    mamba_ssm_mamba2,
)
SELECTIVE_SCAN = Implementation(
    "mamba-ssm",
    f"on CUDA, not float64, at most {_STATES} states",
    _accepts_selective_scan,
    mamba_ssm_selective_scan,
)
