"""Mixture of experts: each token passes through the few feed-forward layers that a router chooses for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides, linear_flops
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.mlp.config import MLPConfig
from hybridtron.mixers.swiglu.config import SwiGLUConfig
from hybridtron.tensors import Init, PackedPart, TensorSpec

AUX_LOSS = 0.01  # weight of the auxiliary loss where it alone keeps the load even (Fedus et al. 2021)


class MoEConfig(MixerConfig):
    """Mixture of experts: top_k of num_experts feed-forward layers for each token, and a shared one for all."""

    type: Literal["moe"]
    num_experts: int = Field(ge=1, description="Experts of the layer.")
    top_k: int = Field(2, ge=1, description="Experts that each token passes through.")
    ffn_hidden_size: Annotated[int, Facts(at_small_width="proportional")] = Field(
        ge=1, description="Inner width of each expert."
    )
    shared_ffn_hidden_size: Annotated[int, Facts(at_small_width="proportional")] = Field(
        0, ge=0, description="Inner width of a further expert that every token passes through; 0: none."
    )
    latent_size: Annotated[int, Facts(at_small_width="proportional")] = Field(
        0,
        ge=0,
        description="Width at which the routed experts work, between a projection of the tokens down and one of their "
        "sum up (LatentMoE, Nemotron 3); router and shared expert see the full width. 0: the model's width.",
    )
    shared_gate: bool = Field(False, description="Multiply the shared expert by the sigmoid of a linear layer.")
    activation: Literal["swiglu", "clamped_swiglu", "gelu", "relu2", "silu", "relu"] = Field(
        "swiglu",
        description="Of every expert, the shared one too. swiglu is gated; clamped_swiglu is (up + 1) * gate * "
        "sigmoid(swiglu_alpha * gate) of values within swiglu_limit (gpt-oss); with the others there are no gates.",
    )
    swiglu_alpha: float = Field(1.702, gt=0, description="clamped_swiglu: factor inside the sigmoid.")
    swiglu_limit: float = Field(7.0, gt=0, description="clamped_swiglu: largest gate, and largest absolute up.")
    bias: bool = Field(False, description="Bias on the router and on both projections of each expert.")
    num_groups: int = Field(1, ge=1, description="Groups of neighbouring experts, of which a token enters some.")
    top_groups: int = Field(
        1,
        ge=1,
        description="Groups from which a token chooses its experts: those whose two highest scores have the largest "
        "sum (DeepSeek-V3).",
    )
    score: Literal["softmax", "sigmoid", "sqrt_softplus"] = Field(
        "softmax",
        description="How router logits become scores: over all experts, or each by itself, as a sigmoid or as the "
        "square root of a softplus (DeepSeek V4).",
    )
    normalize_top_k: bool | None = Field(
        None, description="Divide the chosen scores by their sum; by default where top_k is 2 or more."
    )
    scaling_factor: float = Field(1.0, gt=0, description="Multiplies what the experts add; not the shared one.")
    balance: Literal["aux", "bias", "none"] = Field(
        "aux",
        description="What keeps the load even: an auxiliary loss over each sequence (aux), or a bias of each expert "
        "that only the choice sees, moved after every update (bias).",
    )
    aux_loss: float | None = Field(
        None, ge=0, description=f"Weight of the auxiliary loss; by default {AUX_LOSS} with balance aux, otherwise 0."
    )
    bias_update_rate: float = Field(1e-3, gt=0, description="balance bias: how far an expert's bias moves at a time.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log partition function of router logits.")
    capacity_factor: float | None = Field(
        None,
        gt=0,
        description="An expert takes this many times an even share of a sequence's tokens, the first ones; later ones "
        "pass it by. By default, and when it generates token by token, it takes all.",
    )
    dispatcher: Annotated[Literal["alltoall", "allgather"], Facts(speed_only=True)] = Field(
        "alltoall",
        description="How tokens reach experts on other processes: each sent where it must go, or all sent to all.",
    )

    first_keys = (
        "num_experts top_k ffn_hidden_size shared_ffn_hidden_size shared_gate activation swiglu_alpha "
        "swiglu_limit bias score normalize_top_k scaling_factor balance aux_loss bias_update_rate z_loss "
        "capacity_factor dispatcher"
    )
    kind = "channel"
    mad_layers: ClassVar = {"moe-mlp": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 16, "balance": "none"}}
    without_balance: ClassVar = {"balance": "none", "aux_loss": None, "z_loss": 0.0}

    @model_validator(mode="after")
    def _keys_agree(self) -> MoEConfig:
        if self.top_k > self.num_experts:
            raise problem("top_k", self.top_k, f"at most num_experts {self.num_experts}")
        self._check_groups()
        if self.normalize_top_k and self.top_k == 1:
            raise problem("normalize_top_k", True, "false with top_k 1, where every weight would be 1")
        if self.shared_gate and not self.shared_ffn_hidden_size:
            raise problem("shared_gate", True, "false without a shared expert (shared_ffn_hidden_size)")
        for key, refused in (("bias", True), ("activation", "clamped_swiglu")):
            if self.shared_ffn_hidden_size and getattr(self, key) == refused:
                raise problem(key, refused, "another value with a shared expert, which has no such form")
        if self.balance == "none" and self.aux_loss:
            raise problem("aux_loss", self.aux_loss, "0 with balance none")
        return self

    def _check_groups(self) -> None:
        check_divides("num_groups", self.num_groups, self.num_experts, "num_experts")
        if self.top_groups > self.num_groups:
            raise problem("top_groups", self.top_groups, f"at most num_groups {self.num_groups}")
        reachable = self.top_groups * (self.num_experts // self.num_groups)
        if self.top_k > reachable:
            raise problem("top_k", self.top_k, f"at most the {reachable} experts of top_groups {self.top_groups}")

    @property
    def normalizes(self) -> bool:
        return self.top_k > 1 if self.normalize_top_k is None else self.normalize_top_k

    @property
    def aux_weight(self) -> float:
        if self.aux_loss is None:
            return AUX_LOSS if self.balance == "aux" else 0.0
        return self.aux_loss

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "clamped_swiglu")

    @property
    def expert_width(self) -> int:
        """Return the width of what the routed experts are given and return."""
        return self.latent_size or self.hidden_size

    @property
    def in_name(self) -> str:
        """Return the name of the experts' first projection."""
        return "gate_up" if self.gated else "up"

    @property
    def shared(self) -> MixerConfig | None:
        """Build the shared expert's own config."""
        if not self.shared_ffn_hidden_size:
            return None
        sizes: dict[str, Any] = {"hidden_size": self.hidden_size, "ffn_hidden_size": self.shared_ffn_hidden_size}
        if self.gated:
            return SwiGLUConfig(type="swiglu", **sizes)
        return MLPConfig.model_validate({"type": "mlp", "activation": self.activation, **sizes})

    def tensors(self) -> dict[str, TensorSpec]:
        experts, hidden, inner = self.num_experts, self.hidden_size, self.ffn_hidden_size
        width = self.expert_width
        gate, up = (PackedPart(name, inner, key="ffn_hidden_size") for name in ("gate", "up"))
        packed = (gate, up) if self.gated else (up,)
        rows = len(packed) * inner
        specs = {"router_weight": TensorSpec((experts, hidden), Init("input"))}
        if self.balance == "bias":
            specs["router_bias"] = TensorSpec((experts,), Init("zeros"), decay=False, trained=False)
        if self.bias:
            key = "latent_size" if self.latent_size else "hidden_size"
            out = (PackedPart("out", width, key=key),)  # cut like the work: each share is added once
            zeros = Init("zeros")
            specs["router_logit_bias"] = TensorSpec((experts,), zeros, decay=False)
            specs[f"{self.in_name}_bias"] = TensorSpec((experts, rows), zeros, packed, 1, decay=False, experts=True)
            specs["down_bias"] = TensorSpec((experts, width), zeros, out, 1, decay=False, experts=True)
        if self.shared_gate:
            specs["shared_gate"] = TensorSpec((1, hidden), Init("input"))
        if self.latent_size:
            specs["latent_down"] = TensorSpec((width, hidden), Init("input"))
            specs["latent_up"] = TensorSpec((hidden, width), Init("output"))
        into = Init("input" if self.latent_size else "output")  # the residual stream, or the latent space
        specs[self.in_name] = TensorSpec((experts, rows, width), Init("input"), packed, axis=1, experts=True)
        specs["down"] = TensorSpec((experts, width, inner), into, (up,), axis=2, experts=True)
        for name, spec in self.shared.tensors().items() if self.shared else ():
            parts = tuple(replace(part, key="shared_ffn_hidden_size") for part in spec.parts)
            specs[f"shared.{name}"] = replace(spec, parts=parts)
        return specs

    def flops(self, seq_len: int) -> int:
        """Count top_k experts for every token, as without a capacity."""
        specs = self.tensors()
        experts = linear_flops(seq_len, specs[self.in_name], specs["down"]) * self.top_k // self.num_experts
        shared = self.shared.flops(seq_len) if self.shared else 0
        once = ("router_weight", "shared_gate", "latent_down", "latent_up")
        every = [specs[name] for name in once if name in specs]
        return linear_flops(seq_len, *every) + experts + shared

    def active_parameters(self) -> int:
        experts = sum(spec.numel for spec in self.tensors().values() if spec.experts)
        return self.parameters() - experts * (self.num_experts - self.top_k) // self.num_experts
