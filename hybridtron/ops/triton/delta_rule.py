"""The gated delta rule by Triton kernels over chunks of at most 64 tokens.

The backward pass computes all but its inputs again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.triton.chunks import block_of, chunk_length, precision_of, sums_in_chunks
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

MAX_KEY_DIM = 256  # channels of a key, which a program holds at once
# Larger blocks would not fit into the registers of a program.
_KEY_BLOCK, _VALUE_BLOCK = 64, 32  # channels, at most
_STATE_ELEMENTS = 4096  # of the state that a program holds


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk_size: int) -> Tensor:
    """Compute `gated_delta_rule` of ops/linear_attention on q and k [b, s, m, n], v [b, s, h, p], g and beta [b, s, h].

    `chunk_size` has no effect. It computes in float32; products for bfloat16 or float16 values take TF32 tensor cores.
    """
    return _GatedDeltaRule.apply(q, k, v, beta, sums_in_chunks(g))


class _Call(NamedTuple):
    """Arguments of one call, contiguous, and the launches that forward and backward share."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    total: Tensor

    @property
    def chunk(self) -> int:
        return chunk_length(self.q.shape[1])

    @property
    def chunks(self) -> int:
        return self.total.shape[1] // self.chunk

    @property
    def sequences(self) -> int:
        """Return b h."""
        return self.v.shape[0] * self.v.shape[2]

    @property
    def extents(self) -> tuple[int, int, int]:
        return self.v.shape[1], self.total.shape[1], self.v.shape[2]

    @property
    def dims(self) -> tuple[int, int]:
        return self.q.shape[-1], self.v.shape[-1]

    def constants(self, *names: str) -> dict[str, Any]:
        """Return the named constants of a kernel, and those of all."""
        (key_dim, head_dim), all_n = self.dims, max(16, power_of_two(self.dims[0]))
        values = {
            "N": key_dim,
            "P": head_dim,
            "BLOCK_N": block_of(key_dim, _KEY_BLOCK),
            "BLOCK_P": block_of(head_dim, _VALUE_BLOCK),
            "ALL_N": all_n,
            "LEVELS": self.chunk.bit_length() - 1,
        }
        shared = {
            "REPEATS": self.v.shape[2] // self.q.shape[2],
            "CHUNK": self.chunk,
            "PRECISION": precision_of(self.v),
            "num_warps": 8,
            "num_stages": 1,
        }
        return {name: values[name] for name in names} | shared

    def per_state(self) -> dict[str, Any]:
        """Return the constants of a kernel that holds a state's rows whole."""
        block = block_of(self.dims[1], min(_KEY_BLOCK, _STATE_ELEMENTS // max(16, power_of_two(self.dims[0]))))
        return self.constants("N", "P", "ALL_N") | {"BLOCK_P": block}

    @property
    def key_blocks(self) -> int:
        return ceil_div(self.dims[0], block_of(self.dims[0], _KEY_BLOCK))

    @property
    def value_blocks(self) -> int:
        return ceil_div(self.dims[1], block_of(self.dims[1], _VALUE_BLOCK))

    def matrices(self) -> Tensor:
        """Return memory for a matrix per chunk [b h, padded, chunk]."""
        return self.total.new_empty(self.sequences, self.total.shape[1], self.chunk)

    def of_heads(self, dim: int) -> Tensor:
        """Return memory for float32 [b, s, h, dim]."""
        return self.total.new_empty(*self.v.shape[:3], dim)

    def states(self) -> Tensor:
        """Return memory for a state per chunk [b h, chunks, n, p]."""
        return self.total.new_empty(self.sequences, self.chunks, *self.dims)

    def solve(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (I + T)^-1, this times beta exp(c) k, the corrections, and the states before chunks."""
        inverse, known, corrections, states = (
            self.matrices(), self.of_heads(self.dims[0]), self.of_heads(self.dims[1]), self.states(),
        )  # fmt: skip
        launch(
            "delta_rule:delta_solve", (self.chunks, self.sequences), self.k, self.beta, self.total, inverse,
            *self.extents, **self.constants("N", "LEVELS", "BLOCK_N"),
        )  # fmt: skip
        for x, out, keys in ((self.k, known, True), (self.v, corrections, False)):
            dim, constants = x.shape[-1], self.constants()
            block = block_of(dim, _KEY_BLOCK)
            if not keys:
                constants["REPEATS"] = 1
            launch(
                "delta_rule:delta_apply", (self.chunks, ceil_div(dim, block), self.sequences), inverse, x, self.beta,
                self.total, out, *self.extents, D=dim, KEYS=keys, BLOCK=block, **constants,
            )  # fmt: skip
        constants = self.per_state()
        launch(
            "delta_rule:delta_states", (ceil_div(self.dims[1], constants["BLOCK_P"]), self.sequences), self.k, known,
            self.total, corrections, states, *self.extents, **constants,
        )  # fmt: skip
        return inverse, known, corrections, states


class _GatedDeltaRule(torch.autograd.Function):
    """Keeps its inputs alone; q and k [b, s, m, n], v [b, s, h, p], beta [b, s, h], total [b, padded, h]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        call = _Call(*(tensor.contiguous() for tensor in inputs))
        ctx.save_for_backward(*call)
        _, _, corrections, states = call.solve()
        out = torch.empty_like(call.v)
        launch(
            "delta_rule:delta_outputs", (call.chunks, call.value_blocks, call.sequences), call.q, call.k,
            call.total, corrections, states, out, *call.extents, **call.constants("N", "P", "BLOCK_N", "BLOCK_P"),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        call, grad = _Call(*ctx.saved_tensors), grad.contiguous()
        inverse, known, corrections, states = call.solve()
        dcorrections, dstates = _state_gradients(call, known, grad)
        dr, dscores, doverlaps = call.of_heads(call.dims[1]), call.matrices(), call.matrices()
        dv, dbeta, dtotal = (torch.empty_like(t) for t in (call.v, call.beta.float(), call.total))
        tensors = (call.q, call.k, call.v, call.beta, call.total, inverse, corrections, grad, dcorrections)
        constants = call.constants("N", "P", "BLOCK_N", "BLOCK_P")
        launch(
            "delta_rule_backward:delta_matrix_gradients", (call.chunks, call.sequences), *tensors, dr, dv, dbeta,
            dtotal, dscores, doverlaps, *call.extents, **constants,
        )  # fmt: skip
        blocks = call.key_blocks
        dq, dk = call.of_heads(call.dims[0]), call.of_heads(call.dims[0])
        more_beta, more_total = dbeta.new_empty(blocks, *dbeta.shape), dtotal.new_empty(blocks, *dtotal.shape)
        launch(
            "delta_rule_backward:delta_key_gradients", (call.chunks, blocks, call.sequences), call.q, call.k,
            call.beta, call.total, corrections, grad, dr, states, dstates, dscores, doverlaps, dq, dk, more_beta,
            more_total, grad.shape[0], *call.extents, **constants,
        )  # fmt: skip
        dq, dk = (t.unflatten(2, (call.q.shape[2], -1)).sum(3) for t in (dq, dk))
        dbeta, dtotal = dbeta + more_beta.sum(0), dtotal + more_total.sum(0)
        return dq.to(call.q.dtype), dk.to(call.k.dtype), dv, dbeta.to(call.beta.dtype), dtotal


def _state_gradients(call: _Call, known: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of corrections and of the states after chunks."""
    dcorrections, dstates = call.of_heads(call.dims[1]), call.states()
    launch(
        "delta_rule_backward:delta_correction_gradients", (call.chunks, call.value_blocks, call.sequences),
        call.q, call.k, call.total, grad, dcorrections, *call.extents,
        **call.constants("N", "P", "BLOCK_N", "BLOCK_P"),
    )  # fmt: skip
    constants = call.per_state()
    launch(
        "delta_rule_backward:delta_state_gradients", (ceil_div(call.dims[1], constants["BLOCK_P"]), call.sequences),
        call.q, call.k, known, call.total, grad, dcorrections, dstates, *call.extents, **constants,
    )  # fmt: skip
    return dcorrections, dstates
