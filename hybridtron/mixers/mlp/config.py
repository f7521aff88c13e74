"""Two-layer feed-forward network."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import Init, PackedPart, TensorSpec


class MLPConfig(MixerConfig):
    """Feed-forward layer: down(activation(up(x)))."""

    type: Literal["mlp"]
    ffn_hidden_size: Annotated[int | None, Facts(at_small_width="proportional")] = Field(
        None, ge=1, description="Inner width; by default 4 hidden_size."
    )
    activation: Literal["gelu", "relu2", "silu", "relu"] = Field(
        "gelu", description="gelu is the tanh form; relu2 is relu squared."
    )
    bias: bool = Field(False, description="Bias on both projections.")

    first_keys = "ffn_hidden_size activation bias"
    kind = "channel"
    token_wise = True
    mad_layers: ClassVar = {"mlp": {}}

    @property
    def inner_size(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    def tensors(self) -> dict[str, TensorSpec]:
        up = (PackedPart("up", self.inner_size, key="ffn_hidden_size"),)
        specs = {
            "up.weight": TensorSpec((self.inner_size, self.hidden_size), Init("input"), up),
            "down.weight": TensorSpec((self.hidden_size, self.inner_size), Init("output"), up, axis=1),
        }
        if self.bias:
            specs["up.bias"] = TensorSpec((self.inner_size,), Init("zeros"), up, decay=False)
            specs["down.bias"] = TensorSpec((self.hidden_size,), Init("zeros"), decay=False)
        return specs
