"""Declarations of parameters.

A primitive declares each of its parameters as a `TensorSpec`: full shape, initial values, named parts and how tensor
parallelism cuts them. Counting, building, initialising, sharding, checkpointing, weight decay and conversion all read
this one declaration. Nothing here needs torch until a tensor is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

InitKind = Literal["input", "output", "embedding", "ones", "zeros", "uniform", "log_uniform", "normal"]


@dataclass(frozen=True)
class Init:
    """Initial values of a common kind.

    `input`, `output`, `embedding`: normal, with the standard deviation that the model's config gives to that role.
    `uniform`, `log_uniform`: uniform in [low, high], or the logarithm of such a draw. `normal`: with mean `low` and
    standard deviation `high`.
    """

    kind: InitKind
    low: float = 0.0
    high: float = 0.0


class InitialValue(Protocol):
    """Initial values particular to some primitive, which keeps them beside its config and imports torch inside."""

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Draw the whole parameter in float32."""
        ...


@dataclass(frozen=True)
class PackedPart:
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
class Shard:
    """One of `size` equal shares."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Shards:
    """Shards of the parameters that one process holds, by kind of parallelism; the default is everything."""

    tensor: Shard = Shard()
    expert: Shard = Shard()
    expert_tensor: Shard = Shard()


WHOLE = Shards()


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: `shape` is the whole, unsharded shape.

    `parts` lie one after another along `axis` and add up to its length; each is cut evenly over the tensor-parallel
    ranks, and a rank holds its shards of all parts, in order. Without parts every rank holds the whole.

    With `experts`, the first axis counts experts and is cut over the expert-parallel ranks; the parts are then cut over
    the expert-tensor-parallel ranks. What is not `trained` is saved and loaded like the rest, and changed by its module
    alone.

    `float32` parameters, and those that are not trained, keep float32 values where the others are bf16.

    `muon` says whether `optimizer.type: muon` updates it with Muon, as it does by default the matrices that are drawn
    as linears are (`input`, `output`); AdamW updates the others.
    """

    shape: tuple[int, ...]
    init: Init | InitialValue
    parts: tuple[PackedPart, ...] = ()
    axis: int = 0
    decay: bool = True
    experts: bool = False
    trained: bool = True
    float32: bool = False
    muon: bool = True

    def __post_init__(self) -> None:
        if not all(self.shape):
            raise AssertionError(
                f"shape {self.shape} has no elements, which no checkpoint holds: expected no parameter"
            )
        if len({part.name for part in self.parts}) != len(self.parts):
            raise AssertionError(f"parts {self.parts} need names of their own, by which checkpoints know them")
        if self.parts and sum(part.size for part in self.parts) != self.shape[self.axis]:
            raise AssertionError(f"parts {self.parts} do not add up to axis {self.axis} of {self.shape}")
        if self.experts and (self.parts and self.axis == 0):
            raise AssertionError("axis 0 counts experts; expected parts along another")

    @property
    def keeps_float32(self) -> bool:
        """Return whether the parameter is float32 in a bf16 model."""
        return self.float32 or not self.trained

    @property
    def takes_muon(self) -> bool:
        """Return whether Muon may update the parameter: a linear's matrix, or one for each expert."""
        is_linear = isinstance(self.init, Init) and self.init.kind in ("input", "output")
        matrix = self.shape[1:] if self.experts else self.shape
        return self.muon and is_linear and self.trained and len(matrix) == 2 and min(matrix) > 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def cuts(self, shards: Shards) -> list[tuple[int, Shard]]:
        """Return the axes that are cut, each with the shard of it that is held."""
        experts = [(0, shards.expert)] if self.experts else []
        return experts + ([(self.axis, self._within(shards))] if self.parts else [])

    def local_sizes(self, shards: Shards) -> list[int]:
        """Return the length of each part on one rank."""
        return [part.size // self._within(shards).size for part in self.parts]

    def _within(self, shards: Shards) -> Shard:
        """Return the shard of the parts that is held."""
        return shards.expert_tensor if self.experts else shards.tensor

    def local_shape(self, shards: Shards) -> tuple[int, ...]:
        """Return the shape on one rank."""
        shape = list(self.shape)
        for axis, shard in self.cuts(shards):
            shape[axis] //= shard.size
        return tuple(shape)

    def shard(self, full: torch.Tensor, shards: Shards) -> torch.Tensor:
        """Return the part of the whole tensor that one process holds."""
        if all(shard.size == 1 for _, shard in self.cuts(shards)):
            return full
        local = full.new_empty(self.local_shape(shards))
        for whole, held in self._runs(shards):
            local[held] = full[whole]
        return local

    def put(self, full: torch.Tensor, local: torch.Tensor, shards: Shards) -> None:
        """Write one process's shard into the whole tensor: the inverse of `shard`."""
        for whole, held in self._runs(shards):
            full[whole] = local[held]

    def held_rows(
        self, start: int, stop: int, shards: Shards
    ) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:  # fmt: skip
        """Locate what one process holds of the rows `start` to `stop` - 1 of the first axis.

        Return pairs of an index into these rows and the index into the shard.
        """
        found = []
        for whole, held in self._runs(shards):
            first, last = max(start, whole[0].start), min(stop, whole[0].stop)
            if first < last:
                begin = held[0].start + first - whole[0].start
                rows, target = slice(first - start, last - start), slice(begin, begin + last - first)
                found.append(((rows, *whole[1:]), (target, *held[1:])))
        return found

    def _runs(self, shards: Shards) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Locate one process's shard: yield pairs of an index into the whole and the index into the shard."""
        whole = [slice(0, length) for length in self.shape]
        held = [slice(0, length) for length in self.local_shape(shards)]
        if self.experts:
            whole[0] = _run(0, self.shape[0], shards.expert)
        if not self.parts:
            yield tuple(whole), tuple(held)
            return
        start = local_start = 0
        for part, size in zip(self.parts, self.local_sizes(shards), strict=True):
            whole[self.axis] = _run(start, part.size, self._within(shards))
            held[self.axis] = slice(local_start, local_start + size)
            yield tuple(whole), tuple(held)
            start, local_start = start + part.size, local_start + size


def _run(start: int, length: int, shard: Shard) -> slice:
    """Return the shard of a run of `length` that begins at `start`."""
    size = length // shard.size
    return slice(start + shard.rank * size, start + (shard.rank + 1) * size)


def indivisible(specs: dict[str, TensorSpec], ways: int, experts: bool = False) -> Iterator[PackedPart]:
    """Find the parts that cannot be cut evenly over so many ranks of tensor times context parallelism, each config key
    once; with `experts` those of experts alone, which expert tensor parallelism cuts."""
    seen = set()
    for spec in specs.values():
        for part in spec.parts:
            if spec.experts == experts and part.units % ways and part.key not in seen:
                seen.add(part.key)
                yield part
