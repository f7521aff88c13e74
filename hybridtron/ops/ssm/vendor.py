"""State spaces by the package mamba-ssm (Gu & Dao 2023, Dao & Gu 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.dispatch import Implementation
from hybridtron.ops.vendor import on_cuda, usable, vendor_function

_SSD = "mamba_ssm.ops.triton.ssd_combined"
_SELECTIVE_SCAN = "mamba_ssm.ops.selective_scan_interface"
_HALF = (torch.bfloat16, torch.float16)
_CHUNKS = (64, 256)  # tokens of a chunk, at least and at most
_STATES = 256  # of a channel or head, at most


def mamba_ssm_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk_size: int) -> Tensor:
    """Compute `ssd` of x [b, s, h, p], dt [b, s, h], A [h], B and C [b, s, g, n] and D [h].

    The chunks have a power of two of tokens, 64 to 256; the last one may be shorter. dt, A and D are float32.
    """
    function = vendor_function(_SSD, "mamba_chunk_scan_combined")
    smallest, largest = _CHUNKS
    length = 1 << (min(max(chunk_size, smallest), largest).bit_length() - 1)
    return function(x, dt.float(), A.float(), B, C, length, D=None if D is None else D.float())


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
    return on_cuda(x, dt, A, B, C, D) and fits and usable(_SSD)


def _accepts_selective_scan(A: Tensor, *others: Tensor) -> bool:
    if not on_cuda(A, *others) or A.shape[1] > _STATES:
        return False
    return all(t.dtype != torch.float64 for t in (A, *others)) and usable(_SELECTIVE_SCAN)


SSD = Implementation(
    "mamba-ssm", f"on CUDA, bfloat16 or float16, rates of heads, at most {_STATES} states", _accepts_ssd, mamba_ssm_ssd
)
SELECTIVE_SCAN = Implementation(
    "mamba-ssm",
    f"on CUDA, not float64, at most {_STATES} states",
    _accepts_selective_scan,
    mamba_ssm_selective_scan,
)
