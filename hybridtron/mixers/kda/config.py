"""Kimi Delta Attention: the gated delta rule with a decay for every key channel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import MixerConfig, check_divides, check_power_of_two
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.step_size import StepSizeBias
from hybridtron.ops.flops import gated_delta_rule_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class KDAConfig(MixerConfig):
    """Kimi Delta Attention (Kimi Linear, arXiv 2510.26692): short convolutions, gated delta rule with a decay for every
    key channel, norm, sigmoid output gate. With `erase_gate` and `write_gate`, Gated DeltaNet-2 (arXiv 2605.22791)."""

    type: Literal["kda"]
    num_heads: Annotated[int, Facts(sets_state="divisor", at_small_width="heads")] = Field(ge=1, description="Heads.")
    key_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Channels per query and key head; by default hidden_size / num_heads."
    )
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Channels per value head; by default key_dim."
    )
    conv_kernel: int = Field(4, ge=1, description="Length of the short convolutions of queries, keys and values.")
    decay_rank: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=0, description="Rank of the projection to the decays; by default head_dim; 0: full rank."
    )
    gate_rank: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=0, description="Rank of the projection to the output gate; by default head_dim; 0: full rank."
    )
    gate_lower_bound: float | None = Field(
        None,
        lt=0,
        description="Safe gate: log decays are this bound times a sigmoid (-5 in Ling); by default minus a softplus.",
    )
    norm_eps: float | None = Field(
        None, gt=0, description="Added to the mean square in the norm of the outputs; by default the model's norm_eps."
    )
    allow_negative: bool = Field(
        False,
        description="Strengths up to 2 in place of 1, which lets a state change its sign (arXiv 2411.12537); with "
        "erase_gate or write_gate the strength of erasing alone.",
    )
    erase_gate: bool = Field(
        False, description="A gate for every key channel erases (GDN-2, arXiv 2605.22791), in place of one per head."
    )
    write_gate: bool = Field(
        False, description="A gate for every value channel writes (GDN-2, arXiv 2605.22791), in place of one per head."
    )
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk, a power of two; changes speed, not results."
    )

    multiplied = ("decay_down", "gate_down")
    float32_state: ClassVar = True
    mad_layers: ClassVar = {
        "kda": {"num_heads": 8},
        "gated-deltanet-2": {"num_heads": 8, "erase_gate": True, "write_gate": True},
    }

    @model_validator(mode="after")
    def _heads_divide(self) -> KDAConfig:
        if self.key_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        check_power_of_two("chunk_size", self.chunk_size)
        return self

    @property
    def value_heads(self) -> int:
        return self.num_heads

    @property
    def key_size(self) -> int:
        return self.key_dim or self.hidden_size // self.num_heads

    @property
    def value_size(self) -> int:
        return self.head_dim or self.key_size

    @property
    def ranks(self) -> dict[str, int]:
        """Return the ranks of the projections to decays and output gates; 0: full rank."""
        ranks = {"decay": self.decay_rank, "gate": self.gate_rank}
        return {name: self.value_size if rank is None else rank for name, rank in ranks.items()}

    @property
    def core_parts(self) -> tuple[PackedPart, ...]:
        """Declare the parts of the core's input: queries, keys, values, strengths, gates of erasing and writing, decays
        and output gate.

        Those of low rank, which `in_proj` does not make, come last.
        """
        key, value, ranks = self.key_size, self.value_size, self.ranks
        sizes = {"q": key, "k": key, "v": value, "beta": 1, "erase": key, "write": value, "decay": key, "gate": value}
        present = {
            "beta": not (self.erase_gate and self.write_gate),
            "erase": self.erase_gate,
            "write": self.write_gate,
        }
        sizes = {name: size for name, size in sizes.items() if present.get(name, True)}
        names = sorted(sizes, key=lambda name: ranks.get(name, 0) > 0)
        return tuple(PackedPart(name, self.num_heads, sizes[name], "num_heads") for name in names)

    def tensors(self) -> dict[str, TensorSpec]:
        parts = {part.name: part for part in self.core_parts}
        low = {name: rank for name, rank in self.ranks.items() if rank}
        packed = tuple(part for part in self.core_parts if part.name not in low)
        convolved, decay = self.core_parts[:3], parts["decay"]
        heads = (PackedPart("heads", self.num_heads, 1, "num_heads"),)
        rows, channels = (sum(part.size for part in each) for each in (packed, convolved))
        bound = self.conv_kernel**-0.5
        specs = {
            "in_proj.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed),
            "conv_weight": TensorSpec((channels, self.conv_kernel), Init("uniform", -bound, bound), convolved),
            "dt_bias": TensorSpec((decay.size,), StepSizeBias(), (decay,), decay=False, float32=True),
            "A_log": TensorSpec((self.num_heads,), Init("log_uniform", 1.0, 16.0), heads, decay=False, float32=True),
            "norm_weight": TensorSpec((self.value_size,), Init("ones"), decay=False),
            "out_proj.weight": TensorSpec((self.hidden_size, parts["v"].size), Init("output"), (parts["v"],), axis=1),
        }
        for name, rank in low.items():
            specs[f"{name}_down"] = TensorSpec((rank, self.hidden_size), Init("input"))
            specs[f"{name}_up.weight"] = TensorSpec((parts[name].size, rank), Init("input"), (parts[name],))
        return specs

    def core_flops(self, seq_len: int) -> int:
        """Count all but queries and keys times keys of neighbouring tokens, an elementwise step of the rule."""
        heads, sizes = self.num_heads, (self.key_size, self.value_size, self.chunk_size)
        return gated_delta_rule_flops(seq_len, heads, heads, *sizes, channel_decays=self.key_size > 1)

    def state_size(self, seq_len: int) -> int:
        return self.num_heads * self.key_size * self.value_size
