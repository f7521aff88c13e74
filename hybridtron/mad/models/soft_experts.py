"""Expert layers with the routing of mad-lab's code, for scores that are to be compared with its own.

It sets the scores of experts that were not chosen to 0 before the softmax, which leaves every expert a weight, and its
mixture projects the inner channels of all experts together. `hybridtron.mixers` has the layers as the paper says them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.contract import Capabilities, MixerConfig, linear_flops
from hybridtron.mixers.hyena_experts.config import HyenaExpertsConfig
from hybridtron.mixers.hyena_experts.module import HyenaExperts
from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.linear import linear
from hybridtron.tensors import Init, TensorSpec

if TYPE_CHECKING:
    from hybridtron.backends.base import Backend


def soft_weights(scores: Tensor, top_k: int) -> Tensor:
    """Compute the softmax over experts with scores below the `top_k`-th set to 0: [..., experts] -> the same."""
    least = scores.topk(top_k, -1).values.amin(-1, keepdim=True)
    return torch.where(scores < least, torch.zeros_like(scores), scores).softmax(-1)


class SoftMoEConfig(MixerConfig):
    """Gated experts whose outputs are all mixed, as mad-lab's MoE layer."""

    type: Literal["soft_moe"]
    num_experts: int = Field(ge=1, description="Experts.")
    top_k: int = Field(2, ge=1, description="Experts whose scores are kept.")
    ffn_hidden_size: int = Field(ge=1, description="Inner width of an expert.")

    kind = "channel"
    capabilities: ClassVar[Capabilities] = Capabilities(vmap=True)

    def tensors(self) -> dict[str, TensorSpec]:
        inner, experts, width = self.num_experts * self.ffn_hidden_size, self.num_experts, self.hidden_size
        return {
            "up": TensorSpec((2 * inner, width), Init("input")),
            "down": TensorSpec((width * experts, inner), Init("output")),
            "router_weight": TensorSpec((experts, width), Init("input")),
            "router_bias": TensorSpec((experts,), Init("zeros"), decay=False),
        }

    def flops(self, seq_len: int) -> int:
        return linear_flops(seq_len, *(spec for spec in self.tensors().values() if len(spec.shape) == 2))

    def build(self, backend: Backend) -> SoftMoE:
        return SoftMoE(self, backend)


class SoftMoE(Mixer):
    """Gated experts whose outputs are all mixed."""

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        value, gate = linear(x, self.up).chunk(2, -1)
        outputs = linear(value * F.gelu(gate, approximate="tanh"), self.down)  # [s, b, h * experts]
        weights = soft_weights(F.linear(x, self.router_weight, self.router_bias), self.config.top_k)
        return (outputs.unflatten(-1, (-1, self.config.num_experts)) * weights.unsqueeze(-2)).sum(-1)


class SoftHyenaExpertsConfig(HyenaExpertsConfig):
    """Hyena experts whose outputs are all mixed, as mad-lab's layer."""

    type: Literal["soft_hyena_experts"]  # type: ignore[assignment]

    capabilities: ClassVar[Capabilities] = Capabilities(vmap=True)

    def build(self, backend: Backend) -> SoftHyenaExperts:
        return SoftHyenaExperts(self, backend)


class SoftHyenaExperts(HyenaExperts):
    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        """Weigh and sum the outputs [..., experts, w] of all experts for tokens x [..., h]: -> [..., w]."""
        bias = self.router_bias if self.config.bias else None
        weights = soft_weights(F.linear(x, self.router_weight, bias), self.config.top_k)
        return (y * weights.unsqueeze(-1)).sum(-2)


SOFT_EXPERTS: dict[str, type[MixerConfig]] = {
    "soft_moe": SoftMoEConfig,
    "soft_hyena_experts": SoftHyenaExpertsConfig,
}
