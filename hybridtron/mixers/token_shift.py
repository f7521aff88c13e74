"""The token before each, which RWKV's layers mix with the token itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.tensors import PackedPart


def before_each(x: Tensor, backend: Backend, documents: Documents | None = None) -> Tensor:
    """Shift [s, b, h] by one token: x_{t-1} at t, zeros at the first of a sequence, or of each document.

    Under context parallelism, which cuts sequences, the shift is made on whole sequences of a share of the channels.
    """
    filled = F.pad(x, (0, -x.shape[-1] % backend.context_parallel_size))
    width = filled.shape[-1] * backend.shards.tensor.size  # a tensor-parallel rank has the channels of all
    parts = (PackedPart("x", width),)

    def shift(whole: Tensor) -> Tensor:
        shifted = F.pad(whole[:-1], (0, 0, 0, 0, 1, 0))
        if documents is None:
            return shifted
        starts = documents.starts(x.device).unsqueeze(-1)
        return shifted.masked_fill(starts, 0.0)

    return backend.with_full_sequence(shift, filled, parts)[..., : x.shape[-1]]


def before_each_next(x: Tensor, before: Tensor) -> Tensor:
    """Shift [s, b, h] by one token, with the token `before` [b, h] at the first."""
    return torch.cat([before.unsqueeze(0), x[:-1]])
