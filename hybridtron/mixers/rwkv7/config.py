"""RWKV-7's time mixing (Peng et al. 2025, arXiv 2503.14456, section 4): a matrix state that a generalised delta rule
updates, and values mixed with those of the first layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides, check_power_of_two
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.rwkv6.config import Ramp
from hybridtron.ops.flops import rwkv7_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

if TYPE_CHECKING:
    import torch

FIRST_VALUE = "rwkv7_first_value"  # what layers carry
# Parts of the core's input, each made of a mixture of its own, with the power of its initial mixture.
MIXED = {"receptance": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}
LOW_RANK = ("decay", "rate", "gate")
_RANK = "by default, with d hidden_size, {} sqrt(d) as the nearest multiple of 32."


@dataclass(frozen=True)
class Zigzag:
    """A ramp over all channels, plus `height` times z |z| with z from -1 to 1 over the channels of each head."""

    ramp: Ramp
    height: float
    head_dim: int

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        import torch

        z = torch.linspace(-1, 1, self.head_dim).repeat(shape[0] // self.head_dim)
        return self.ramp(shape, generator) + self.height * z * z.abs()


class RWKV7Config(MixerConfig):
    """RWKV-7 "Goose" time mixing: decays, in-context learning rates and gates by low-rank maps, a bonus for the current
    token, a norm of each head. Starts alike at every depth; the authors' code also shifts mixtures and decays with the
    layer."""

    type: Literal["rwkv7"]
    head_dim: Annotated[int, Facts(sets_state="divisor", at_small_width="head_channels")] = Field(
        64, ge=1, description="Channels per head."
    )
    decay_rank: int | None = Field(None, ge=1, description=f"Rank of the map to decays; {_RANK.format(2.5)}")
    rate_rank: int | None = Field(
        None, ge=1, description=f"Rank of the map to in-context learning rates; {_RANK.format(2.5)}"
    )
    gate_rank: int | None = Field(None, ge=1, description=f"Rank of the map to gates; {_RANK.format(5)}")
    value_residual: bool = Field(
        True,
        description="Mix values with those of the model's first layer that has them; not in a branch of parallel.",
    )
    value_rank: int | None = Field(
        None, ge=1, description=f"Rank of the map to the shares of the first layer's values; {_RANK.format(1.7)}"
    )
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, le=64, description="Tokens per chunk of the scan, a power of two; changes speed alone."
    )

    multiplied = tuple(
        f"{name}_{kind}"
        for name in ("receptance", "key", "value", *LOW_RANK)
        for kind in (("down", "up") if name in LOW_RANK else ("weight", "down", "up"))
    )
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"rwkv7-time-mixer": {"head_dim": 16}}

    @model_validator(mode="after")
    def _heads_divide(self) -> RWKV7Config:
        check_divides("head_dim", self.head_dim, self.hidden_size, "hidden_size")
        check_power_of_two("chunk_size", self.chunk_size)
        if self.value_rank and not self.value_residual:
            raise problem("value_rank", self.value_rank, "nothing with value_residual false")
        return self

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def carries(self) -> dict[str, int]:
        return {FIRST_VALUE: self.hidden_size} if self.value_residual else {}

    @property
    def core_parts(self) -> tuple[PackedPart, ...]:
        """Declare the parts of the core's input."""
        return tuple(self._heads(name) for name in MIXED)

    def rank(self, name: str) -> int:
        """Return the rank of a low-rank map: of decay, rate, gate or value."""
        factor = {"decay": 2.5, "rate": 2.5, "gate": 5.0, "value": 1.7}[name]
        written: int | None = getattr(self, f"{name}_rank")
        return written or max(1, round(factor * math.sqrt(self.hidden_size) / 32)) * 32

    def tensors(self) -> dict[str, TensorSpec]:
        width, heads = self.hidden_size, (self._heads("head"),)

        def of_channels(init: Init | Ramp | Zigzag) -> TensorSpec:
            return TensorSpec((width,), init, heads, decay=False)

        specs = {
            f"mix_{name}": TensorSpec((width,), Ramp(1.0, 0.0, power), decay=False) for name, power in MIXED.items()
        }
        for name in ("receptance", "key", "value"):
            specs[f"{name}_weight"] = TensorSpec((width, width), Init("input"), heads)
        for name in (*LOW_RANK, *["value"] * self.value_residual):
            specs[f"{name}_down"] = TensorSpec((self.rank(name), width), Init("zeros"))
            specs[f"{name}_up"] = TensorSpec((width, self.rank(name)), Init("normal", 0.0, 0.1 * width**-0.5), heads)
        if self.value_residual:
            specs["value_base"] = of_channels(Ramp(0.93, 0.53))
        return specs | {
            "decay_base": of_channels(Zigzag(Ramp(-5.5, 0.5), 2.5, self.head_dim)),
            "rate_base": of_channels(Zigzag(Ramp(-0.39, 0.01), 0.3, self.head_dim)),
            "key_scale": of_channels(Ramp(0.76, 0.66)),
            "key_rate": of_channels(Init("normal", 1.02)),
            "current_bonus": of_channels(Init("normal", -0.04)),
            "norm_weight": of_channels(Init("ones")),
            "norm_bias": of_channels(Init("zeros")),
            "out_proj.weight": TensorSpec((width, width), Init("output"), heads, axis=1),
        }

    def core_flops(self, seq_len: int) -> int:
        return rwkv7_flops(seq_len, self.num_heads, self.head_dim, self.head_dim, self.chunk_size)

    def state_size(self, seq_len: int) -> int:
        """Count the matrices of the heads; the token before is left out, as the inputs of a short convolution are."""
        return self.num_heads * self.head_dim * self.head_dim

    def _heads(self, name: str) -> PackedPart:
        return PackedPart(name, self.num_heads, self.head_dim, "head_dim")
