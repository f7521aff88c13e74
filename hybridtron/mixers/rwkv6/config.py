"""RWKV-6's time mixing (Peng et al. 2024, arXiv 2404.05892, section 4.2): a matrix state whose channels fade at rates
that every token sets anew, and projections of a mixture of each token and the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import MixerConfig, check_divides, check_power_of_two
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import gla_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

if TYPE_CHECKING:
    import torch

MIXED = ("decay", "key", "value", "receptance", "gate")  # projections, each of a mixture of its own
_SMALL = Init("uniform", -1e-4, 1e-4)


@dataclass(frozen=True)
class Ramp:
    """Initial values from `low` along the first axis, the share of the way raised to `power`; the last one is `high`,
    or without `reaches_high` one step before it."""

    low: float
    high: float
    power: float = 1.0
    reaches_high: bool = True

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        import torch

        steps = shape[0] + (not self.reaches_high)
        way = torch.linspace(0, 1, steps)[: shape[0]].pow_(self.power).mul_(self.high - self.low)
        return way.add_(self.low).view(-1, *[1] * (len(shape) - 1)).expand(shape)


class RWKV6Config(MixerConfig):
    """RWKV-6 time mixing: heads with a matrix state, a decay for every key channel and token, and a bonus for the
    current token. Starts alike at every depth; the authors' code also shifts mixtures and decays with the layer."""

    type: Literal["rwkv6"]
    head_dim: Annotated[int, Facts(sets_state="divisor", at_small_width="head_channels")] = Field(
        64, ge=1, description="Channels per head."
    )
    mix_rank: int = Field(32, ge=1, description="Rank of what makes the five mixtures depend on the token.")
    decay_rank: int = Field(64, ge=1, description="Rank of what makes the decays depend on the token.")
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        32, ge=1, description="Tokens per chunk of the scan, a power of two; changes speed alone."
    )

    first_keys = "head_dim mix_rank decay_rank chunk_size"
    multiplied = ("mix_down", "mix_up", "decay_down", *(f"{name}_weight" for name in MIXED))
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"rwkv6-time-mixer": {"head_dim": 16}}

    @model_validator(mode="after")
    def _heads_divide(self) -> RWKV6Config:
        check_divides("head_dim", self.head_dim, self.hidden_size, "hidden_size")
        check_power_of_two("chunk_size", self.chunk_size)
        return self

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def core_parts(self) -> tuple[PackedPart, ...]:
        """Declare the parts of the core's input."""
        return tuple(self._heads(name) for name in MIXED)

    def tensors(self) -> dict[str, TensorSpec]:
        width = self.hidden_size
        heads = (self._heads("head"),)
        # Channels differ in how much of the token before they see, and how fast they forget (appendix D of the paper).
        mixtures = {name: Ramp(1.0, 0.0, 0.5 if name in ("receptance", "gate") else 1.0) for name in MIXED}
        return {
            "mix_base": TensorSpec((width,), Ramp(1.0, 0.0), decay=False),
            **{f"mix_{name}": TensorSpec((width,), init, decay=False) for name, init in mixtures.items()},
            "mix_down": TensorSpec((len(MIXED) * self.mix_rank, width), _SMALL),
            "mix_up": TensorSpec((len(MIXED), self.mix_rank, width), _SMALL),
            "decay_base": TensorSpec((width,), Ramp(-6.0, -1.0, 0.7), heads, decay=False),
            "decay_down": TensorSpec((self.decay_rank, width), _SMALL),
            "decay_weight": TensorSpec((width, self.decay_rank), _SMALL, heads),
            **{f"{name}_weight": TensorSpec((width, width), Init("input"), heads) for name in MIXED[1:]},
            "bonus": TensorSpec((width,), Init("uniform", -0.1, 0.1), heads, decay=False),
            "norm_weight": TensorSpec((width,), Init("ones"), heads, decay=False),
            "norm_bias": TensorSpec((width,), Init("zeros"), heads, decay=False),
            "out_proj.weight": TensorSpec((width, width), Init("output"), heads, axis=1),
        }

    def core_flops(self, seq_len: int) -> int:
        return gla_flops(seq_len, self.num_heads, self.head_dim, self.head_dim, self.chunk_size)

    def state_size(self, seq_len: int) -> int:
        """Count the matrices of the heads; the token before is left out, as the inputs of a short convolution are."""
        return self.num_heads * self.head_dim * self.head_dim

    def _heads(self, name: str) -> PackedPart:
        return PackedPart(name, self.num_heads, self.head_dim, "head_dim")
