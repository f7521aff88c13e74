"""A parameter, declared once.

A primitive declares each of its parameters as a `TensorSpec`: full shape, initialisation, named parts and how tensor
parallelism cuts them. Counting, building, initialising, slicing, checkpointing, weight decay and conversion all read
this one declaration. Nothing here needs torch until a tensor is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

InitKind = Literal["input", "output", "embedding", "ones", "zeros", "uniform", "log_uniform", "dt_bias"]


@dataclass(frozen=True)
class Init:
    """How a parameter starts.

    `input`, `output`, `embedding`: normal, with the standard deviation that the model's config gives to that role.
    `uniform`, `log_uniform`: uniform in [low, high], or the logarithm of such a draw. `dt_bias`: the inverse softplus
    of a log-uniform step size in [low, high] (Mamba-2).
    """

    kind: InitKind
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Part:
    """A named run of rows along a parameter's cut axis.

    Tensor parallelism gives each rank the same number of whole units (heads, groups, channels); `key` is the config key
    that sets the number of units, for messages.
    """

    name: str
    units: int
    unit_size: int = 1
    key: str = ""

    @property
    def size(self) -> int:
        return self.units * self.unit_size


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: `shape` is the whole, unsharded shape.

    `parts` lie one after another along `axis` and add up to its length; each is cut evenly over the tensor-parallel
    ranks, and a rank holds its pieces of all parts, in order. Without parts every rank holds the whole.
    """

    shape: tuple[int, ...]
    init: Init
    parts: tuple[Part, ...] = ()
    axis: int = 0
    decay: bool = True

    def __post_init__(self) -> None:
        if self.parts and sum(part.size for part in self.parts) != self.shape[self.axis]:
            raise AssertionError(f"parts {self.parts} do not add up to axis {self.axis} of {self.shape}")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def sharded(self) -> bool:
        return bool(self.parts)

    def local_sizes(self, tensor_parallel_size: int) -> list[int]:
        """Length of each part on one rank."""
        return [part.size // tensor_parallel_size for part in self.parts]

    def local_shape(self, tensor_parallel_size: int) -> tuple[int, ...]:
        if not self.parts:
            return self.shape
        local = sum(self.local_sizes(tensor_parallel_size))
        return (*self.shape[: self.axis], local, *self.shape[self.axis + 1 :])

    def shard(self, full: torch.Tensor, rank: int, tensor_parallel_size: int) -> torch.Tensor:
        """The piece of the whole tensor that `rank` holds."""
        if not self.parts or tensor_parallel_size == 1:
            return full
        import torch

        pieces = []
        for part, whole in zip(self.parts, full.split([p.size for p in self.parts], self.axis), strict=True):
            length = part.size // tensor_parallel_size
            pieces.append(whole.narrow(self.axis, rank * length, length))
        return torch.cat(pieces, self.axis)

    def merge(self, shards: list[torch.Tensor]) -> torch.Tensor:
        """The whole tensor from the pieces of all ranks, in rank order."""
        if not self.parts or len(shards) == 1:
            return shards[0]
        import torch

        sizes = self.local_sizes(len(shards))
        by_rank = [shard.split(sizes, self.axis) for shard in shards]
        return torch.cat([piece for part in zip(*by_rank, strict=True) for piece in part], self.axis)


def indivisible(specs: dict[str, TensorSpec], tensor_parallel_size: int) -> Iterator[Part]:
    """The parts that cannot be cut evenly over so many ranks, each config key once."""
    seen = set()
    for spec in specs.values():
        for part in spec.parts:
            if part.units % tensor_parallel_size and part.key not in seen:
                seen.add(part.key)
                yield part
