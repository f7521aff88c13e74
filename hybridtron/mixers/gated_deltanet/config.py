"""Gated DeltaNet: a fading matrix of memory per head, in which a key's old value is replaced by its new one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides, check_power_of_two
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.step_size import StepSizeBias
from hybridtron.ops.flops import gated_delta_rule_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class GatedDeltaNetConfig(MixerConfig):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): short convolutions, gated delta rule, norm, output gate.

    With `householder_steps`, DeltaProduct (arXiv 2502.10297); with `read_back` and `output_correction`, Comba.
    """

    type: Literal["gated_deltanet"]
    num_heads: Annotated[int, Facts(sets_state="divisor", at_small_width="heads")] = Field(
        ge=1, description="Query and key heads."
    )
    num_value_heads: Annotated[int | None, Facts(at_small_width="grouped_heads")] = Field(
        None,
        ge=1,
        description="Value heads, a multiple of num_heads, which share queries and keys; by default as many.",
    )
    key_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Channels per query and key head; by default hidden_size / num_heads."
    )
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Channels per value head; by default key_dim."
    )
    conv_kernel: int = Field(4, ge=1, description="Length of the short convolutions of queries, keys and values.")
    norm_eps: float | None = Field(
        None, gt=0, description="Added to the mean square in the norm of the outputs; by default the model's norm_eps."
    )
    allow_negative: bool = Field(
        False, description="Strengths up to 2 in place of 1, which lets a state change its sign (arXiv 2411.12537)."
    )
    householder_steps: int = Field(
        1, ge=1, description="Steps of the delta rule per token, each with its key, value and strength (DeltaProduct)."
    )
    read_back: bool = Field(
        False,
        description="Correct what a key scaled per head reads of the state before its decay (Comba, arXiv 2506.02475).",
    )
    output_correction: bool = Field(
        False, description="Subtract from queries the key that reads back, times a factor per head (Comba)."
    )
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk, a power of two; changes speed, not results."
    )

    first_keys = "num_heads num_value_heads key_dim head_dim conv_kernel norm_eps allow_negative chunk_size"
    float32_state: ClassVar = True
    mad_layers: ClassVar = {
        "gated-deltanet": {"num_heads": 8},
        "gated-deltaproduct": {"num_heads": 8, "householder_steps": 2, "allow_negative": True},
        "comba": {"num_heads": 8, "read_back": True, "output_correction": True},
    }

    @model_validator(mode="after")
    def _heads_divide(self) -> GatedDeltaNetConfig:
        if self.key_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        if self.value_heads % self.num_heads:
            multiple = max(1, round(self.value_heads / self.num_heads)) * self.num_heads
            expected = f"a multiple of num_heads {self.num_heads} (nearest: {multiple})"
            raise problem("num_value_heads", self.num_value_heads, expected)
        for key in ("read_back", "output_correction"):
            if getattr(self, key) and self.householder_steps > 1:
                raise problem(key, True, f"false with householder_steps {self.householder_steps}")
        check_power_of_two("chunk_size", self.chunk_size)
        return self

    @property
    def value_heads(self) -> int:
        return self.num_value_heads or self.num_heads

    @property
    def key_size(self) -> int:
        return self.key_dim or self.hidden_size // self.num_heads

    @property
    def value_size(self) -> int:
        return self.head_dim or self.key_size

    def tensors(self) -> dict[str, TensorSpec]:
        steps, key, value = self.householder_steps, self.key_size, self.value_size
        key_sizes = {"q": key, "k": steps * key}
        value_sizes = {"v": steps * value, "z": value, "beta": steps, "dt": 1}
        queries, keys = (PackedPart(name, self.num_heads, size, "num_heads") for name, size in key_sizes.items())
        values, z, beta, dt = (
            PackedPart(name, self.value_heads, size, "num_value_heads") for name, size in value_sizes.items()
        )
        outputs = PackedPart("v", self.value_heads, value, "num_value_heads")
        convolved = (queries, keys, values)
        packed = (*convolved, z, beta, dt)
        rows, channels = (sum(part.size for part in parts) for parts in (packed, convolved))
        bound = self.conv_kernel**-0.5
        specs = {
            "in_proj.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed),
            "conv_weight": TensorSpec((channels, self.conv_kernel), Init("uniform", -bound, bound), convolved),
            "dt_bias": TensorSpec((dt.size,), StepSizeBias(), (dt,), decay=False, float32=True),
            "A_log": TensorSpec((dt.size,), Init("log_uniform", 1.0, 16.0), (dt,), decay=False, float32=True),
            "norm_weight": TensorSpec((self.value_size,), Init("ones"), decay=False),
            "out_proj.weight": TensorSpec((self.hidden_size, outputs.size), Init("output"), (outputs,), axis=1),
        }
        heads = (PackedPart("heads", self.num_heads, 1, "num_heads"),)
        per_head = TensorSpec((self.num_heads,), Init("ones"), heads, decay=False, float32=True)
        corrections = {"read_back_logit": self.read_back, "output_correction": self.output_correction}
        return specs | {name: per_head for name, present in corrections.items() if present}

    def core_flops(self, seq_len: int) -> int:
        sizes = (self.num_heads, self.value_heads, self.key_size, self.value_size, self.chunk_size)
        return gated_delta_rule_flops(self.householder_steps * seq_len, *sizes)

    def state_size(self, seq_len: int) -> int:
        return self.value_heads * self.key_size * self.value_size
