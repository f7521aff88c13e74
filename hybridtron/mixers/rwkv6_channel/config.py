"""RWKV-6's channel mixing (Peng et al. 2024, arXiv 2404.05892): a feed-forward layer on mixtures of a token and the one
before it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.rwkv6.config import Ramp
from hybridtron.tensors import Init, PackedPart, TensorSpec


class RWKV6ChannelConfig(MixerConfig):
    """RWKV-6 channel mixing: sigmoid(receptance(x_r)) * value(relu(key(x_k))^2), of mixtures with the token before.
    Mixtures start alike at every depth; the authors' code shifts them with the layer. RWKV-7's is without receptance,
    with an inner width of 4 hidden_size."""

    type: Literal["rwkv6_channel"]
    ffn_hidden_size: Annotated[int | None, Facts(at_small_width="proportional")] = Field(
        None, ge=1, description="Inner width; by default 3.5 hidden_size, rounded up to a multiple of 32."
    )
    receptance: bool = Field(True, description="Gate outputs by receptances; false: value(relu(key(x_k))^2) alone.")

    first_keys = "ffn_hidden_size"
    kind = "channel"
    multiplied = ("key_weight", "receptance_weight")
    mad_layers: ClassVar = {
        "rwkv7-channel-mixer": {"ffn_hidden_size": 512, "receptance": False},
        "rwkv6-channel-mixer": {"ffn_hidden_size": 512},
    }

    @property
    def inner_size(self) -> int:
        return self.ffn_hidden_size or -(-7 * self.hidden_size // 64) * 32

    def tensors(self) -> dict[str, TensorSpec]:
        width, inner = self.hidden_size, (PackedPart("key", self.inner_size, key="ffn_hidden_size"),)
        ramp = Ramp(1.0, 0.0)
        specs = {
            "mix_key": TensorSpec((width,), ramp, decay=False),
            "mix_receptance": TensorSpec((width,), ramp, decay=False),
            "key_weight": TensorSpec((self.inner_size, width), Init("input"), inner),
            "receptance_weight": TensorSpec((width, width), Init("input")),
            "value.weight": TensorSpec((width, self.inner_size), Init("output"), inner, axis=1),
        }
        return {name: spec for name, spec in specs.items() if self.receptance or "receptance" not in name}
