"""SwiGLU feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import Init, PackedPart, TensorSpec


class SwiGLUConfig(MixerConfig):
    """Gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    type: Literal["swiglu"]
    ffn_hidden_size: Annotated[int | None, Facts(at_small_width="proportional")] = Field(
        None, ge=1, description="Inner width; by default 8/3 hidden_size, rounded up to a multiple of 64."
    )

    first_keys = "ffn_hidden_size"
    kind = "channel"
    token_wise = True
    mad_layers: ClassVar = {"swiglu": {"ffn_hidden_size": 352}}

    @property
    def inner_size(self) -> int:
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 64) * 64

    def tensors(self) -> dict[str, TensorSpec]:
        gate, up = (PackedPart(name, self.inner_size, key="ffn_hidden_size") for name in ("gate", "up"))
        return {
            "gate_up.weight": TensorSpec((2 * self.inner_size, self.hidden_size), Init("input"), (gate, up)),
            "down.weight": TensorSpec((self.hidden_size, self.inner_size), Init("output"), (up,), axis=1),
        }
