"""The size of a vocabulary, which may have rows of padding in one format and not in another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hybridtron.convert.formats.source import Shape, Source, TensorInfo
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.tokenizer import IDS
from hybridtron.data.tokenizers.tokenizer import Tokenizer
from hybridtron.errors import UserError
from hybridtron.initial_weights import VOCABULARY
from hybridtron.training.config import RunConfig


def names_of_vocabulary(entries: Iterable[Entry]) -> list[str]:
    """Return the names of the tensors there that have a row for each token."""
    return [entry.name for entry in entries if set(entry.parts) & set(VOCABULARY)]


def with_vocabulary(config: RunConfig, vocab_size: int) -> RunConfig:
    """Return the config of a run whose vocabulary has this size."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})


def padded_size(vocab_size: int, multiple: int) -> int:
    """Return the smallest multiple that holds the vocabulary. Raises UserError."""
    if multiple < 1:
        raise UserError(f"pad_vocab_to = {multiple}: expected at least 1")
    return -(-vocab_size // multiple) * multiple


def check_vocabulary_size(vocab_size: int, rows: int, tokenizer: Tokenizer, generation: Mapping[str, Any]) -> None:
    """Raise UserError where a vocabulary of this size lacks rows, of those that there are, which tokens have.

    Tokens are those of the tokenizer, and the ids in the generation settings.
    """
    values = (generation.get(key) for key in IDS)
    ids = [each for value in values for each in (value if isinstance(value, list) else [value])]
    tokens = max([tokenizer.vocab_size, *(each + 1 for each in ids if isinstance(each, int))])
    if vocab_size < min(tokens, rows):
        raise UserError(
            f"vocab_size = {vocab_size}: expected at least {min(tokens, rows)}, the number of tokens in use"
        )


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
        if rows == sizes[0]:
            return self.source.read(name, offsets, sizes)
        values = torch.zeros(sizes, dtype=info.dtype)
        if rows:
            values[:rows] = self.source.read(name, offsets, (rows, *sizes[1:]))
        return values
