"""Rows of padding that a vocabulary has in one format and not in another."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from hybridtron.convert.formats.source import Shape, Source, TensorInfo
from hybridtron.errors import UserError


class ResizedVocabulary:
    """A source whose vocabulary has another number of rows: zeros are added at the end, or rows dropped there.

    Args:
        source: what is read.
        names: tensors with a row for each token, such as the embedding and the output projection.
        vocab_size: rows that they have here.
        drop: names among them that may lose rows, which hold values that nothing brings back.

    Raises:
        UserError: where a tensor has more rows, and `drop` does not name it.
    """

    def __init__(self, source: Source, names: Iterable[str], vocab_size: int, drop: Collection[str] = ()) -> None:
        self.source, self.tensors = source, dict(source.tensors)
        for name in names:
            info = source.tensors[name]
            if info.shape[0] > vocab_size and name not in drop:
                raise UserError(
                    f"{name} has {info.shape[0]} rows; expected {vocab_size}: the {info.shape[0] - vocab_size} beyond "
                    "are dropped only where they are named"
                )
            self.tensors[name] = TensorInfo((vocab_size, *info.shape[1:]), info.dtype)

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a tensor; see `Source.read`."""
        stored, info = self.source.tensors[name], self.tensors[name]
        offsets = offsets or (0,) * len(info.shape)
        sizes = info.shape if sizes is None else sizes
        if stored == info:
            return self.source.read(name, offsets, sizes)
        rows = max(0, min(sizes[0], stored.shape[0] - offsets[0]))
        values = torch.zeros(sizes, dtype=info.dtype)
        if rows:
            values[:rows] = self.source.read(name, offsets, (rows, *sizes[1:]))
        return values
