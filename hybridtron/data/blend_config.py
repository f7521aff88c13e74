"""The sources of `data.train` and `data.valid`: one path, a list of sources with weights, or Megatron's flat list."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from hybridtron.config.schema import FolderName, Strict, problem
from hybridtron.data.datasets.proportions import SMALLEST_SHARE

STANDARD_LIBRARY = "stdlib"
SPLITS = ("train", "valid")  # files that a preparation writes: the folder's name says more


class DataSource(Strict):
    """Token files, and their weight among the sources of a list."""

    path: str = Field(min_length=1, description="PATH of PATH.bin and PATH.idx, or `stdlib`.")
    weight: float | None = Field(
        None, gt=0, description="Share of the samples, relative to the other sources; needed with several of them."
    )
    name: FolderName | None = Field(
        None, description="In metrics and reports; by default the last part of the path that is not train or valid."
    )

    def with_absolute_path(self) -> DataSource:
        """Return the same files by an absolute path."""
        return self.model_copy(update={"path": absolute(self.path, STANDARD_LIBRARY)})


class DataStage(Strict):
    """A part of training with weights of its own, up to the next stage."""

    start_step: int = Field(ge=0, description="First step of the stage, counted from 0; later than the stage before.")
    weights: dict[str, float] = Field(
        min_length=1, description="Names of sources -> weights; sources without one give no samples in this stage."
    )


def absolute(source: str, *words: str) -> str:
    """Return the absolute path of a file, or a word that stands for something else."""
    return source if source in words else os.path.abspath(source)


def _read_flat(value: Any) -> Any:
    """Read Megatron's [weight, path, weight, path, ...] as a list of mappings; leave anything else as it is."""
    if not isinstance(value, list | tuple) or not any(_is_plain(entry) for entry in value):
        return value
    for position, entry in enumerate(value):
        if not _is_plain(entry):
            raise problem(f"[{position}]", entry, "weights and paths in turns, or mappings of path and weight only")
    sources = []
    for position in range(0, len(value), 2):
        weight = _number(value[position])
        if weight is None:
            raise problem(f"[{position}]", value[position], "a weight, which the path follows")
        if position + 1 == len(value) or not isinstance(value[position + 1], str):
            found = value[position + 1] if position + 1 < len(value) else None
            raise problem(f"[{position + 1}]", found, f"the path of the source with weight {value[position]}")
        sources.append({"path": value[position + 1], "weight": weight})
    return sources


def _is_plain(entry: Any) -> bool:
    return isinstance(entry, str | int | float)


def _number(entry: Any) -> float | None:
    """Return the weight that a number, or a text such as "0.3", says; None for anything else."""
    try:
        return None if isinstance(entry, bool) else float(entry)
    except ValueError:
        return None


def _complete(sources: Any) -> Any:
    """Fill in names, and the weight of a single source. Raises a problem for a source that does not fit the others."""
    if sources in ("", ()):
        raise problem("", sources, "text of at least 1 characters" if sources == "" else "at least one source")
    if not isinstance(sources, tuple):
        return sources
    names = list(_names(sources))
    for position, source in enumerate(sources):
        for other in range(position):
            if os.path.abspath(source.path) == os.path.abspath(sources[other].path):
                raise problem(
                    f"[{position}].path", source.path, f"a path that no other source has, as entry {other} does"
                )
            if names[position] == names[other]:
                raise problem(
                    f"[{position}].name", names[position], f"a name that no other source has, as entry {other} does"
                )
        if source.weight is None and len(sources) > 1:
            raise problem(f"[{position}].weight", None, "more than 0, which each of several sources needs")
    pairs = zip(sources, names, strict=True)
    complete = tuple(source.model_copy(update={"weight": source.weight or 1.0, "name": name}) for source, name in pairs)
    check_weights([(f"[{position}].weight", source.weight) for position, source in enumerate(complete)])
    return complete


def check_weights(weights: Sequence[tuple[str, float]]) -> None:
    """Raise a problem for a weight, given beside its key, that is not positive or a vanishing share of all of them."""
    for key, weight in weights:
        if weight <= 0:
            raise problem(key, weight, "more than 0")
    total = sum(Fraction(str(weight)) for _, weight in weights)
    for key, weight in weights:
        if Fraction(str(weight)) < Fraction(str(SMALLEST_SHARE)) * total:
            raise problem(key, weight, f"at least {SMALLEST_SHARE:g} of the sum of the weights")


def _names(sources: Sequence[DataSource]) -> list[str]:
    """Return the names of sources; those that were not given are made unique by a number."""
    names = [source.name for source in sources]
    for position, source in enumerate(sources):
        if names[position] is None:
            base, number = default_name(source.path), 2
            name = base
            while name in names:
                name, number = f"{base}-{number}", number + 1
            names[position] = name
    return [name or "" for name in names]


def default_name(path: str) -> str:
    """Return the last part of a path that says which text it is, in letters, digits, '.', '_' and '-'."""
    parts = [part for part in Path(path).parts if part not in SPLITS] or [path]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1]).lstrip("._-") or "source"


Sources = Annotated[str | tuple[DataSource, ...] | None, BeforeValidator(_read_flat), AfterValidator(_complete)]


def as_sources(value: str | tuple[DataSource, ...] | None) -> tuple[DataSource, ...]:
    """Return the sources of a list, or the one that a path is; none for None."""
    if isinstance(value, str):
        return (DataSource(path=value, weight=1.0, name=default_name(value)),)
    return value or ()


def stage_weights(stage: DataStage, sources: Sequence[DataSource]) -> list[float]:
    """Return the weight of each source in a stage, 0 for one that gives no samples."""
    return [stage.weights.get(source.name or "", 0.0) for source in sources]


def source_key(key: str, position: int, count: int) -> str:
    """Return the key of the path of one of `count` sources: `data.train`, or `data.train[1].path` of several."""
    return key if count == 1 else f"{key}[{position}].path"


def without_paths(section: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return a data section as plain values with what the files hold in place of where they lie, and without names.

    `fingerprints` has them by `source_key`.
    """
    found = dict(section)
    for key in ("train", "valid", "tokenizer"):
        found[key] = fingerprints.get(f"data.{key}")
        if isinstance(section[key], list) and len(section[key]) > 1:
            found[key] = [
                {"path": fingerprints[source_key(f"data.{key}", position, 2)], "weight": source["weight"]}
                for position, source in enumerate(section[key])
            ]
    if section.get("stages"):
        number = {source["name"]: position for position, source in enumerate(section["train"])}
        found["stages"] = [
            [stage["start_step"], sorted([number[name], weight] for name, weight in stage["weights"].items())]
            for stage in section["stages"]
        ]
    return found


def by_source(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data section, as plain values, with a key for each source of several, such as `train[1]`.

    A single source is its path. Weights of stages are by place, `stages[0].weights[1]`, so that names do not matter.
    """
    found = {key: value for key, value in data.items() if key != "stages"}
    for split in ("train", "valid"):
        sources = data.get(split)
        if isinstance(sources, list) and len(sources) > 1:
            del found[split]
            found |= {f"{split}[{position}]": source for position, source in enumerate(sources)}
        elif isinstance(sources, list):
            found[split] = sources[0]["path"]
    for position, stage in enumerate(data.get("stages") or ()):
        weights = {f"weights[{i}]": stage["weights"].get(source["name"], 0) for i, source in enumerate(data["train"])}
        found[f"stages[{position}]"] = {"start_step": stage["start_step"], **weights}
    return found
