"""SwiGLU feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from hybridtron.mixers.contract import Capabilities, MixerConfig, linear_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

if TYPE_CHECKING:
    from hybridtron.backends.base import Backend
    from hybridtron.mixers.swiglu.module import SwiGLU


class SwiGLUConfig(MixerConfig):
    """Gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    type: Literal["swiglu"]
    ffn_hidden_size: int | None = Field(
        None, ge=1, description="Inner width; by default 8/3 hidden_size, rounded up to a multiple of 64."
    )

    kind: ClassVar[Literal["sequence", "channel"]] = "channel"
    capabilities: ClassVar[Capabilities] = Capabilities(
        tensor=True, sequence=True, context=True, selective=True, vmap=True
    )

    @property
    def inner_size(self) -> int:
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 64) * 64

    def tensors(self) -> dict[str, TensorSpec]:
        gate, up = (PackedPart(name, self.inner_size, key="ffn_hidden_size") for name in ("gate", "up"))
        return {
            "gate_up.weight": TensorSpec((2 * self.inner_size, self.hidden_size), Init("input"), (gate, up)),
            "down.weight": TensorSpec((self.hidden_size, self.inner_size), Init("output"), (up,), axis=1),
        }

    def flops(self, seq_len: int) -> int:
        return linear_flops(seq_len, *self.tensors().values())

    def state_size(self, seq_len: int) -> int:
        return 0

    def build(self, backend: Backend) -> SwiGLU:
        from hybridtron.mixers.swiglu.module import SwiGLU

        return SwiGLU(self, backend)
