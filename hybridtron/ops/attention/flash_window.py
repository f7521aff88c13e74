"""Sliding windows by the flash kernel that PyTorch carries (Dao 2023, arXiv 2307.08691).

scaled_dot_product_attention takes a window as a mask only, for which its kernels compute and read more than the window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.dispatch import Implementation
from hybridtron.ops.memory_layout import channels_contiguous
from hybridtron.ops.vendor import on_cuda

_WIDTHS = 8  # what divides the channels of a head
_MAX_WIDTH = 256  # channels of a head
_HALF = (torch.bfloat16, torch.float16)


def flash_window(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float, sinks: None = None) -> Tensor:
    """Compute `attention` with a window and as many queries as keys: q [b, s, h, d], k and v [b, s, kv, d]."""
    seq_len = q.shape[1]
    q, k, v = map(channels_contiguous, (q, k, v))
    return torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, seq_len, seq_len, 0.0, False, False,
        scale=scale, window_size_left=window - 1, window_size_right=0,
    )[0]  # fmt: skip


def _accepts(window: int | None, scale: float, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> bool:
    if window is None or window >= k.shape[1] or sinks is not None or scale <= 0 or not on_cuda(q, k, v):
        return False
    width = q.shape[-1]
    fits = q.shape[1] == k.shape[1] and width == v.shape[-1] <= _MAX_WIDTH and width % _WIDTHS == 0
    if not fits or q.dtype not in _HALF or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


FLASH_WINDOW = Implementation(
    "flash attention of PyTorch",
    f"on CUDA 8.0 or newer, a window, bfloat16 or float16, heads of at most {_MAX_WIDTH} channels, no sinks",
    _accepts,
    flash_window,
)
