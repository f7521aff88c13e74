"""The `data` section of a run's config."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from hybridtron.config.schema import Strict

STANDARD_LIBRARY = "stdlib"


class DataConfig(Strict):
    """Token files in Megatron's .bin/.idx format, given by their path without the suffix.

    Paths are relative to the folder in which the command runs; the run folder's config.yaml holds them absolute.
    `stdlib` stands for the sources of the running interpreter's standard library, prepared under data/ when first used.
    """

    train: str | None = Field(
        None,
        min_length=1,
        description="Training tokens: PATH of PATH.bin and PATH.idx, or `stdlib`; not needed by a model that is not "
        "trained, such as an imported one.",
    )
    valid: str | None = Field(
        None, min_length=1, description="Held-out tokens, likewise; without them nothing is evaluated."
    )
    tokenizer: str = Field(
        "byte", description="`byte`, or the path of a Hugging Face tokenizer.json; data and run folders keep a copy."
    )
    seq_len: int = Field(ge=1, description="Tokens per sequence.")
    documents: Literal["flow", "isolate"] = Field(
        "flow",
        description="Whether the documents of a sequence see each other. flow: they do, across the end-of-document "
        "token. isolate: attention, recurrent state, convolutions and positions begin anew at each document, whose "
        "first token is not predicted.",
    )
    loader: Literal["mmap", "dali"] = Field(
        "mmap",
        description="What reads training batches: memory-mapped files, or NVIDIA DALI (extra dali), which copies "
        "micro-batches to the GPU ahead. The batches are the same.",
    )

    @property
    def isolates(self) -> bool:
        """Return whether documents are kept apart."""
        return self.documents == "isolate"

    def with_absolute_paths(self) -> DataConfig:
        """Return the same files by absolute paths."""

        def absolute(source: str | None, *words: str) -> str | None:
            return source if source is None or source in words else os.path.abspath(source)

        paths = {"train": absolute(self.train, STANDARD_LIBRARY), "valid": absolute(self.valid, STANDARD_LIBRARY)}
        return self.model_copy(update={**paths, "tokenizer": absolute(self.tokenizer, "byte")})
