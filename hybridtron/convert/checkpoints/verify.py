"""Compare two checkpoints, runs or Hugging Face folders: the same tensors, and the same logits?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hybridtron.convert.as_stored import as_stored
from hybridtron.convert.formats.opening import checkpoint_of, open_source
from hybridtron.convert.formats.source import Source, boxes, dtype_name
from hybridtron.convert.new_run import Progress
from hybridtron.convert.receipt import TOLERANCE
from hybridtron.convert.streaming import is_equal
from hybridtron.convert.transformers_model import load_transformers_model, without_kernel_warnings
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.shown import Shown, show
from hybridtron.training.single_process import load

SMALL = 200e6  # parameters up to which logits are compared unasked
TOKENS = (2, 64)  # shape of the random batch
NAMED = 10  # differences that are printed


@dataclass(frozen=True)
class Difference:
    """A tensor that differs: why, and by how much at most where both have it in one shape."""

    tensor: str
    reason: str
    largest: float | None = None


@dataclass(frozen=True)
class Comparison(Shown):
    """Result of comparing two models. `logits` is their largest difference; None where they were not computed, and
    `no_logits` says why."""

    one: Path
    other: Path
    equal_tensors: int
    differences: tuple[Difference, ...]
    logits: float | None = None
    largest_logit: float | None = None
    no_logits: str = ""

    @property
    def largest(self) -> float:
        return max((each.largest for each in self.differences if each.largest is not None), default=0.0)

    @property
    def same_logits(self) -> bool:
        return self.logits is None or self.logits <= TOLERANCE * max(self.largest_logit or 0.0, 1.0)

    @property
    def same(self) -> bool:
        return not self.differences and self.same_logits

    @property
    def verdict(self) -> str:
        if not self.same:
            return "different models"
        return "same model" if self.logits is not None else "same tensors; logits not compared"

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "same": self.same,
            "one": str(self.one),
            "other": str(self.other),
            "equal_tensors": self.equal_tensors,
            "differences": [vars(each) for each in self.differences],
            "largest_difference": self.largest,
            "logits_difference": self.logits,
            "largest_logit": self.largest_logit,
            "no_logits": self.no_logits,
        }


def verify(
    one: str | Path, other: str | Path, *, logits: bool | None = None, progress: Progress | None = None
) -> Comparison:
    """Compare the parameters of two models bit by bit, streamed, and their logits on random tokens.

    Args:
        one: a run, a checkpoint, or a folder of Hugging Face, native or ours.
        other: likewise.
        logits: compare logits; by default where there are at most 200 million parameters.
        progress: called while tensors are compared.

    Raises:
        UserError: where a path holds none of these, or a model cannot be built though `logits` asks for it.
        OSError: where the system cannot read one.
    """
    one, other = as_path(one, "one"), as_path(other, "other")
    first, second = (as_stored(path, open_source(path)) for path in (one, other))
    differences: list[Difference] = []
    names = dict.fromkeys([*first.tensors, *second.tensors])
    total = sum(info.size_bytes for info in first.tensors.values())
    done = 0
    for name in names:
        if difference := _difference(name, first, second, one, other):
            differences.append(difference)
        done += first.tensors[name].size_bytes if name in first.tensors else 0
        if progress:
            progress(done, total)
    result = Comparison(one, other, len(names) - len(differences), tuple(differences))
    parameters = sum(math.prod(info.shape) for info in first.tensors.values())
    if logits is False or (logits is None and parameters > SMALL):
        return result
    try:
        found, largest = _logits_difference(one, other)
    except (UserError, ImportError) as error:
        if logits:
            raise UserError(f"logits=True: {error}") from None
        return _with(result, no_logits=str(error))
    return _with(result, logits=found, largest_logit=largest)


def _with(result: Comparison, **fields: Any) -> Comparison:
    """Return a result with other fields."""
    return Comparison(**{**vars(result), **fields})


def _difference(name: str, first: Source, second: Source, one: Path, other: Path) -> Difference | None:
    """Return how a tensor differs, or None; of both sources at most a box is in memory."""
    for source, path in ((first, one), (second, other)):
        if name not in source.tensors:
            return Difference(name, f"is not in {path}")
    mine, theirs = first.tensors[name], second.tensors[name]
    if mine.shape != theirs.shape:
        return Difference(name, f"has the shape {list(mine.shape)}, and {list(theirs.shape)} in {other}")
    largest, same = 0.0, mine.dtype == theirs.dtype
    for box in boxes(mine):
        a, b = first.read(name, *box), second.read(name, *box)
        if a.dtype == b.dtype and is_equal(a, b):
            continue
        same = False
        gap = (a.double() - b.double()).abs().max().item()
        largest = max(largest, math.inf if math.isnan(gap) else gap)
    if same:
        return None
    if mine.dtype != theirs.dtype:
        return Difference(name, f"is {dtype_name(mine.dtype)}, and {dtype_name(theirs.dtype)} in {other}", largest)
    return Difference(name, "differs", largest)


def _logits_difference(one: Path, other: Path) -> tuple[float, float]:
    """Return the largest difference of the logits of two models on random tokens, and the largest logit."""
    sizes, functions = zip(*(_logits_of(path) for path in (one, other)), strict=True)
    tokens = torch.randint(min(sizes), TOKENS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), without_kernel_warnings():
        a, b = (compute(tokens)[..., : min(sizes)].double() for compute in functions)
    gap = (a - b).abs().max().item()
    return (math.inf if math.isnan(gap) else gap), a.abs().max().item()


def _logits_of(path: Path) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Return the vocabulary of a model, and its logits as a function of tokens. Raises UserError, ImportError."""
    if checkpoint_of(path) is not None:
        model = load(path).float()
        return model.config.model.vocab_size, model.logits
    theirs = load_transformers_model(path, dtype=torch.float32)
    return theirs.get_input_embeddings().weight.shape[0], lambda tokens: theirs(tokens, use_cache=False).logits


@show.register(Comparison)
def _(result: Comparison, console: Console) -> None:
    """Print the first differences and a line that sums up."""

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for each in result.differences[:NAMED]:
        line(f"{each.tensor} {each.reason}" + ("" if each.largest is None else f", by at most {each.largest:.3g}"))
    if len(result.differences) > NAMED:
        line(f"... and {len(result.differences) - NAMED} more")
    different = f", {len(result.differences)} differ, by at most {result.largest:.3g}" if result.differences else ""
    line(f"{plural(result.equal_tensors, 'tensor')} equal{different}")
    if result.logits is not None:
        word = "agree" if result.same_logits else "differ"
        line(f"logits {word}: by at most {result.logits:.3g}, of {result.largest_logit:.3g}")
    elif result.no_logits:
        line(f"logits not compared: {result.no_logits}")
    line(result.verdict)
