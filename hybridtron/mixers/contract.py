"""Base class of every primitive's config.

A primitive is a folder: `config.py` (a `MixerConfig`, free of torch) answers every question about the primitive before
a tensor exists; `module.py` holds its `Mixer`, built on a backend. Its maths is in `hybridtron.ops`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hybridtron.config.schema import Strict, problem
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import PackedPart, TensorSpec

if TYPE_CHECKING:
    from hybridtron.backends.base import Backend
    from hybridtron.mixers.mixer import Mixer

Layers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Capabilities:
    """What a primitive can do; a layout that needs more is refused when the config is read."""

    tensor: bool = False
    sequence: bool = False
    context: bool = False
    selective: bool = False  # its module has a `core`, which the backward pass can recompute by itself
    vmap: bool = False


EVERYTHING = Capabilities(tensor=True, sequence=True, context=True, selective=True, vmap=True)


class MixerConfig(Strict):
    """Base of every primitive's config. Subclasses add `type: Literal["name"]` and their own keys."""

    type: str
    hidden_size: int = Field(0, exclude=True, description="Width of the residual stream; taken from the model.")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="Where the layer's norm stands: x + layer(norm(x)) or x + norm(layer(x)) (OLMo 2)."
    )

    kind: ClassVar[Literal["sequence", "channel"]] = "sequence"
    capabilities: ClassVar[Capabilities] = EVERYTHING
    token_wise: ClassVar[bool] = False  # a token's output follows from that token alone, whichever others there are
    attends: ClassVar[bool] = False  # it keeps all tokens, or those of a window, and compares each with them
    float32_state: ClassVar[bool] = False  # its state is in float32 also where parameters are narrower
    shares_state: ClassVar[bool] = True  # its fixed state counts where architectures are compared at equal state
    multiplied: ClassVar[tuple[str, ...]] = ()  # parameters by which tokens are multiplied, beside linears NAME.weight
    mad_layers: ClassVar[Layers] = {}  # keys at width 128 by the name of the layer in the MAD protocol
    without_balance: ClassVar[dict[str, Any]] = {}  # keys that switch off what keeps the load of experts even
    # Keys that are part of a result's hash at their default too, beside those of all types. None: all, until the type
    # gets more keys after results were made with it.
    first_keys: ClassVar[str | None] = None

    @classmethod
    def facts(cls) -> dict[str, Facts]:
        """Return what the fields state about their keys, for keys that state anything."""
        stated = [(key, entry) for key, field in cls.model_fields.items() for entry in field.metadata]
        return {key: entry for key, entry in stated if isinstance(entry, Facts)}

    def changed_keys(self) -> set[str]:
        """Return the keys that are required or away from their default."""
        return set(self.model_dump(exclude_defaults=True))

    @property
    def carries(self) -> dict[str, int]:
        """Return the values that the first layer with such a value makes for all later ones: name -> channels.

        A process holds a tensor-parallel share of the channels for all tokens of its run, [s, b, channels], before the
        all-to-all of context parallelism. See `hybridtron.mixers.mixer`.
        """
        return {}

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """Return the mixers that the block consists of: itself, unless it has branches."""
        return (self,)

    @property
    def core_parts(self) -> tuple[PackedPart, ...] | None:
        """Declare the parts of the core's input; None where they are those of the one projection that makes it."""
        return None

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare every parameter of the primitive, by its name inside the module."""
        raise NotImplementedError

    def flops(self, seq_len: int) -> int:
        """Count the FLOPs of one forward pass over one sequence: matrix products and Fourier transforms, a multiply-add
        as two.

        Counted as executed on a CPU: attention leaves out the blocks of keys that lie wholly after a block of queries.
        """
        specs = self.tensors().items()
        matrices = (spec for name, spec in specs if name.endswith(".weight") or name in self.multiplied)
        return linear_flops(seq_len, *matrices) + self.core_flops(seq_len)

    def core_flops(self, seq_len: int) -> int:
        """Count those of `flops` that are not of tokens times parameters."""
        return self.unseen_flops(seq_len)

    def unseen_flops(self, seq_len: int) -> int:
        """Count those of `flops` that PyTorch's flop counter does not see: Fourier transforms."""
        return 0

    def state_size(self, seq_len: int) -> int:
        """Count the elements kept per sequence to generate the next token after seq_len tokens.

        The few last inputs of a short convolution in front of a larger state are left out; where a convolution is the
        primitive itself, its inputs are the state. A channel mixer keeps nothing by default.
        """
        if self.kind == "channel":
            return 0
        raise NotImplementedError

    def state_bytes(self, seq_len: int, parameter_bytes: int) -> int:
        """Count the bytes of `state_size` elements, for parameters of so many bytes."""
        return self.state_size(seq_len) * (4 if self.float32_state else parameter_bytes)

    def build(self, backend: Backend) -> Mixer:
        """Build the module: the class in `module.py` beside the config that is named like it, without `Config`."""
        module = importlib.import_module(f"{type(self).__module__.rpartition('.')[0]}.module")
        return getattr(module, type(self).__name__.removesuffix("Config"))(self, backend)

    def for_layer(self, index: int, count: int) -> MixerConfig:
        """Return the config of the block in layer `index` of the `count` layers of sequences: itself, unless the
        primitive depends on its depth."""
        return self

    def parameters(self) -> int:
        """Count all parameters."""
        return sum(spec.numel for spec in self.tensors().values())

    def active_parameters(self) -> int:
        """Count the parameters that one token's forward pass uses."""
        return self.parameters()


def linear_flops(seq_len: int, *specs: TensorSpec) -> int:
    """Count FLOPs of multiplying seq_len tokens with each matrix."""
    return sum(2 * seq_len * spec.numel for spec in specs)


def check_divides(key: str, value: int, total: int, of: str) -> None:
    """Raise a validator's problem unless `value` of `key` divides `total`, which the message calls `of`."""
    if total % value:
        raise problem(key, value, f"a divisor of {of} {total} (nearest: {nearest_divisors(total, value)})")


def check_whole(key: str, share: float, width: int, least: int = 1) -> None:
    """Raise a validator's problem unless `share` of `key` times `width` is whole and at least `least`, in channels."""
    channels = round(share * width)
    if channels < least or not isclose(channels, share * width, abs_tol=1e-3):
        nearest = max(least, channels) / width
        raise problem(key, share, f"one that times {width} is a whole number of channels (nearest: {nearest:.6g})")


def check_power_of_two(key: str, value: int) -> None:
    """Raise a validator's problem unless `value` of `key`, at least 1, is a power of two."""
    below = 1 << (value.bit_length() - 1)
    if value != below:
        raise problem(key, value, f"a power of two (nearest: {below}, {2 * below})")


def nearest_divisors(total: int, value: int) -> str:
    """Return the divisors of `total` just below and above `value`, as text for a message."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    below = [d for d in divisors if d < value][-1:]
    above = [d for d in divisors if d > value][:1]
    return ", ".join(str(d) for d in below + above)
