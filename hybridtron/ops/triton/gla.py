"""Gated linear attention by Triton kernels over chunks of at most 64 tokens.

The backward pass computes scores and states again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.triton.chunks import block_of, chunk_length, precision_of, sums_in_chunks
from hybridtron.ops.triton.launch import ceil_div, launch

_SUB = 16  # tokens of a block in a chunk
_BLOCK = 64  # channels of keys or values that a program takes, at most


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk_size: int) -> Tensor:
    """Compute `gla` of ops/linear_attention on q, k and g [b, s, h, n] and v [b, s, h, p], in float32.

    `chunk_size` has no effect. Products for bfloat16 or float16 values take TF32 tensor cores.
    """
    return _GLA.apply(q, k, v, sums_in_chunks(g))


class _Call(NamedTuple):
    """The extents of one call, and the launches that forward and backward share."""

    seq_len: int
    chunk: int  # tokens
    padded: int
    heads: int
    sequences: int  # b h
    key_dim: int
    head_dim: int
    precision: str

    @classmethod
    def of(cls, q: Tensor, v: Tensor, total: Tensor) -> _Call:
        batch, seq_len, heads, key_dim = q.shape
        return cls(
            seq_len, chunk_length(seq_len), total.shape[1], heads, batch * heads, key_dim, v.shape[-1], precision_of(v)
        )

    @property
    def chunks(self) -> int:
        return self.padded // self.chunk

    @property
    def extents(self) -> tuple[int, int, int]:
        return self.seq_len, self.padded, self.heads

    def constants(self, *names: str) -> dict[str, Any]:
        """Return the constants of a kernel: the named ones of N, P, SUB, BLOCK_N and BLOCK_P, and those of all."""
        block_n, block_p = block_of(self.key_dim, _BLOCK), block_of(self.head_dim, _BLOCK)
        values = {"N": self.key_dim, "P": self.head_dim, "SUB": _SUB, "BLOCK_N": block_n, "BLOCK_P": block_p}
        shared = {"CHUNK": self.chunk, "PRECISION": self.precision, "num_warps": 8, "num_stages": 2}
        return {name: values[name] for name in names} | shared

    def blocks(self, name: str) -> int:
        """Return how many blocks cover the channels of keys ("n") or values ("p")."""
        dim = self.key_dim if name == "n" else self.head_dim
        return ceil_div(dim, block_of(dim, _BLOCK))

    def scores(self, q: Tensor, k: Tensor, total: Tensor) -> Tensor:
        """Return the scores of each token for those of its chunk [b h, padded, chunk]."""
        out = total.new_empty(self.sequences, self.padded, self.chunk)
        launch(
            "gla:gla_scores", (self.padded // _SUB, self.sequences), q, k, total, out, *self.extents,
            **self.constants("N", "SUB", "BLOCK_N"),
        )  # fmt: skip
        return out

    def states(self, x: Tensor, v: Tensor, total: Tensor, reverse: bool) -> Tensor:
        """Return the states before chunks, or the gradients of those after them: [b h, chunks, n, p]."""
        out = total.new_empty(self.sequences, self.chunks, self.key_dim, self.head_dim)
        launch(
            "gla:gla_states", (self.blocks("n"), self.blocks("p"), self.sequences), x, v, total, out, *self.extents,
            REVERSE=reverse, **self.constants("N", "P", "BLOCK_N", "BLOCK_P"),
        )  # fmt: skip
        return out

    def mix(self, scores: Tensor, x: Tensor, v: Tensor, total: Tensor, states: Tensor, reverse: bool) -> Tensor:
        """Return the outputs, or the gradients of values, in the dtype and shape of v."""
        out = torch.empty_like(v)
        launch(
            "gla:gla_mix", (self.chunks, self.blocks("p"), self.sequences), scores, x, v, total, states, out,
            *self.extents, REVERSE=reverse, **self.constants("N", "P", "BLOCK_N", "BLOCK_P"),
        )  # fmt: skip
        return out


class _GLA(torch.autograd.Function):
    """Keeps its inputs alone; q, k and total are [b, s, h, n], v [b, s, h, p]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, total: Tensor) -> Tensor:
        q, k, v, total = (t.contiguous() for t in (q, k, v, total))
        call = _Call.of(q, v, total)
        ctx.save_for_backward(q, k, v, total)
        states = call.states(k, v, total, reverse=False)
        return call.mix(call.scores(q, k, total), q, v, total, states, reverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, total = ctx.saved_tensors
        call, grad = _Call.of(q, v, total), grad.contiguous()
        states = call.states(k, v, total, reverse=False)
        dstates = call.states(q, grad, total, reverse=True)
        dv = call.mix(call.scores(q, k, total), k, grad, total, dstates, reverse=True)
        dscores = total.new_empty(call.sequences, call.padded, call.chunk)
        launch(
            "gla:gla_score_gradients", (call.chunks, call.sequences), grad, v, dscores, *call.extents,
            **call.constants("P", "BLOCK_P"),
        )  # fmt: skip
        dq, dk = (torch.empty(q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        dlast, dtotal = total.new_empty(call.sequences, call.chunks, call.key_dim), torch.empty_like(total)
        launch(
            "gla:gla_gradients_between", (call.chunks, call.blocks("n"), call.sequences), k, v, grad, total, states,
            dstates, dq, dk, dlast, *call.extents, **call.constants("N", "P", "BLOCK_N", "BLOCK_P"),
        )  # fmt: skip
        launch(
            "gla:gla_gradients_within", (call.padded // _SUB, call.blocks("n"), call.sequences), q, k, total, dscores,
            dq, dk, dlast, dtotal, *call.extents, **call.constants("N", "SUB", "BLOCK_N"),
        )  # fmt: skip
        return dq.to(q.dtype), dk.to(k.dtype), dv, dtotal
