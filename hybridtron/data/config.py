"""The `data` section of a run's config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict, problem
from hybridtron.data.blend_config import (
    STANDARD_LIBRARY,
    DataSource,
    DataStage,
    Sources,
    absolute,
    as_sources,
    check_weights,
)


class DataConfig(Strict):
    """Token files in Megatron's .bin/.idx format, given by their path without the suffix.

    Paths are relative to the folder in which the command runs; the run folder's config.yaml holds them absolute.
    `stdlib` stands for the sources of the running interpreter's standard library, prepared under data/ when first used.
    """

    train: Sources = Field(
        None,
        description="Training tokens: PATH of PATH.bin and PATH.idx, or `stdlib`; or several sources, as a list of "
        "mappings or Megatron's `[weight, path, weight, path, ...]`. Not needed by a model that is not trained, such "
        "as an imported one.",
    )
    valid: Sources = Field(
        None,
        description="Held-out tokens, likewise; without them nothing is evaluated. Of several sources the loss of each "
        "is reported, and as that of the whole their mean by weight.",
    )
    stages: tuple[DataStage, ...] = Field(
        (),
        description="Other weights of the sources of data.train from some step on. Before the first stage those of "
        "data.train hold.",
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

    @model_validator(mode="after")
    def _stages_fit(self) -> DataConfig:
        for error in self._stage_problems():
            raise error
        return self

    def _stage_problems(self) -> Iterator[Exception]:
        names = [source.name or "" for source in self.train_sources]
        if self.stages and len(names) < 2:
            yield problem("stages", [stage.model_dump() for stage in self.stages], "none without several sources")
        for position, stage in enumerate(self.stages):
            key = f"stages.[{position}]"
            if position and stage.start_step <= self.stages[position - 1].start_step:
                yield problem(f"{key}.start_step", stage.start_step, "a later step than the stage before")
            for name in stage.weights:
                if name not in names:
                    yield problem(
                        f"{key}.weights.{name}", stage.weights[name], f"a source of data.train: {one_of(name, names)}"
                    )
            check_weights([(f"{key}.weights.{name}", weight) for name, weight in stage.weights.items()])

    @property
    def train_sources(self) -> tuple[DataSource, ...]:
        """Return the training sources; none where none are given."""
        return as_sources(self.train)

    @property
    def valid_sources(self) -> tuple[DataSource, ...]:
        """Return the held-out sources; none where none are given."""
        return as_sources(self.valid)

    def with_absolute_paths(self) -> DataConfig:
        """Return the same files by absolute paths."""

        def absolute_paths(sources: Sources) -> Sources:
            if isinstance(sources, str):
                return absolute(sources, STANDARD_LIBRARY)
            return sources and tuple(source.with_absolute_path() for source in sources)

        paths = {"train": absolute_paths(self.train), "valid": absolute_paths(self.valid)}
        return self.model_copy(update={**paths, "tokenizer": absolute(self.tokenizer, "byte")})
