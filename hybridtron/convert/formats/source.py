"""What a conversion reads from and writes into: tensors by name, box by box."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from hybridtron.distributed.checkpoint.boxes import Box, pieces
from hybridtron.distributed.checkpoint.layout import CHUNK_BYTES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """The whole shape and the number format of a stored tensor."""

    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Source(Protocol):
    """Stored tensors that are read box by box."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a tensor, or all of it; only the bytes of the box are read. Several threads may read.

        Raises DamagedCheckpoint where the file is cut, OSError where the system cannot read it.
        """
        ...


class Sink(Protocol):
    """A folder of tensors that is written box by box; a context manager.

    The folder has its name only once all is written: until then it is `NAME.partial`, which is removed where the block
    raises, or the process is interrupted.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> bool | None: ...

    def write(self, name: str, tensor: Tensor, offsets: Shape | None = None) -> None:
        """Write a box of a tensor that begins at `offsets`, or all of it. Each element is written once, by any thread.

        Raises OSError.
        """
        ...

    def add_file(self, name: str, content: bytes) -> None:
        """Write a further small file into the folder. Raises OSError."""
        ...


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def boxes(info: TensorInfo) -> Iterator[Box]:
    """Cut a tensor into contiguous boxes of at most CHUNK_BYTES."""
    return pieces(Box((0,) * len(info.shape), info.shape), CHUNK_BYTES // info.dtype.itemsize)


def copy(source: Source, sink: Sink, name: str, new_name: str | None = None) -> None:
    """Copy a tensor from a source into a sink, at most CHUNK_BYTES at a time."""
    for box in boxes(source.tensors[name]):
        sink.write(new_name or name, source.read(name, *box), box.offsets)
