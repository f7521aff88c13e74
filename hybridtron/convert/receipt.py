"""conversion.json: what a conversion read and wrote, and what was found by reading it back."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from hybridtron import __version__
from hybridtron.accounting.doctor import installed_version
from hybridtron.config.nearest import one_of
from hybridtron.convert.formats.source import Source
from hybridtron.convert.streaming import Table, differing
from hybridtron.errors import UserError, cause_of
from hybridtron.files import open_to_read, replace_file
from hybridtron.reporting.shown import Shown, show
from hybridtron.reporting.table import Table as ShownTable

logger = logging.getLogger(__name__)

NAME = "conversion.json"
TOLERANCE = 1e-4  # of logits, relative to the largest one
PACKAGES = ("torch", "transformers", "megatron-core", "safetensors")
BLOCK = 8 * 2**20  # bytes that are hashed at once
LARGEST = 50_000_000  # parameters of a model whose logits "auto" compares

Logits = Literal["auto", "always", "never"]
_VERDICTS = {None: "not compared", True: f"agree, within {TOLERANCE:.0e} of the largest", False: "differ"}


@dataclass(frozen=True)
class TensorRecord:
    """A tensor there, and whether what was written is bitwise what was read."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    equal: bool


@dataclass(frozen=True)
class Receipt(Shown):
    """A conversion. Hashes are sha256 by file; differences of logits are the largest, in fp32, or None."""

    verb: str
    architecture: str
    source: str
    source_files: dict[str, str]
    target: str
    target_files: dict[str, str]
    tensors: list[TensorRecord]
    parameters: int
    logits: dict[str, float | None]
    versions: dict[str, str]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    largest_logit: float | None = None
    same_logits: bool | None = None  # within TOLERANCE of the largest; None where they were not compared

    @property
    def different(self) -> list[str]:
        """Return the tensors that are not bitwise equal."""
        return [tensor.name for tensor in self.tensors if not tensor.equal]

    def as_json(self) -> dict[str, Any]:
        """Return what conversion.json holds."""
        return {"equal": not self.different, **asdict(self)}


def check_logits_choice(choice: str) -> None:
    """Raise UserError for what `logits` may not be, and where `always` cannot be done."""
    choices = ("auto", "always", "never")
    if choice not in choices:
        raise UserError(f"logits = {choice!r}: expected {one_of(choice, choices)}")
    if choice == "always":
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise UserError(f"logits = 'always': needs transformers, of the extra hf: {error}") from None


def write_receipt(
    verb: str,
    table: Table,
    ours: Source,
    theirs: Source,
    *,
    source_folder: Path,
    target_folder: Path,
    run: Path,
    hf: Path,
    into: Path,
    ignored: Sequence[str] = (),
    notes: Sequence[str] = (),
    logits: Logits = "auto",
) -> Receipt:
    """Compare what was written with what was read, write conversion.json, and return what it holds.

    It is written before logits are compared, and again after. Raises OSError where a tensor differs, and what
    comparing logits raises where `logits` is always.
    """
    equal = dict(differing(table, ours, theirs, written="ours" if verb.startswith("from-") else "theirs"))
    records = [
        TensorRecord(name, info.shape, str(info.dtype).removeprefix("torch."), equal[name])
        for name, info in theirs.tensors.items()
        if name in equal
    ]
    parameters = sum(math.prod(shape) for shape in table.shapes.values())
    receipt = Receipt(
        verb,
        table.architecture,
        str(source_folder),
        hashes(source_folder),
        str(target_folder),
        hashes(target_folder),
        records,
        parameters,
        {"TP1": None, "TP2": None},
        _versions(),
        list(ignored),
        list(notes),
    )
    compares = logits != "never" and not receipt.different
    unfinished = [*notes, "logits were not compared: the conversion was interrupted"] if compares else list(notes)
    _write(replace(receipt, notes=unfinished), into)
    if receipt.different:
        what = f"{len(receipt.different)} tensors are not what was written, first {receipt.different[0]}"
        raise OSError(errno.EIO, what, str(target_folder))
    if compares:
        receipt = _with_logits(receipt, logits, run, hf)
        _write(receipt, into)
    return receipt


def _write(receipt: Receipt, folder: Path) -> None:
    replace_file(folder / NAME, json.dumps(receipt.as_json(), indent=2, allow_nan=False) + "\n")


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder and of checkpoints in it, but for conversion.json, by its path."""
    found = [*folder.glob("*"), *folder.glob("step_*/*")]
    files = sorted(path for path in found if path.is_file() and path.name != NAME)
    return {str(path.relative_to(folder)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_to_read(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {name: version for name in PACKAGES if (version := installed_version(name))}
    return {"hybridtron": __version__, "python": platform.python_version(), **found}


def _with_logits(receipt: Receipt, choice: Logits, run: Path, hf: Path) -> Receipt:
    """Return a receipt with what comparing logits gave, or, where that is not asked for, why it gave nothing."""
    if choice == "auto" and receipt.parameters > LARGEST:
        why = f"more than {LARGEST:,} parameters; logits='always' compares them"
        return replace(receipt, notes=[*receipt.notes, f"logits were not compared: {why}"])
    try:
        from hybridtron.convert.logits import largest_differences

        found, largest, why_not = largest_differences(run, hf)
    except Exception as error:
        if choice == "always":
            raise
        logger.debug("logits cannot be compared", exc_info=True)
        return replace(receipt, notes=[*receipt.notes, f"logits were not compared: {cause_of(error)}"])
    notes = [*receipt.notes, *why_not]
    compared = {key: value for key, value in found.items() if value is not None}
    notes += [f"logits at {key} differ by no finite number" for key, value in compared.items() if not isfinite(value)]
    same = all(value <= TOLERANCE * largest for value in compared.values())
    if not same:
        notes.append(f"logits differ by more than {TOLERANCE:.0e} of the largest: the models compute something else")
    return replace(
        receipt,
        logits={key: value if value is not None and isfinite(value) else None for key, value in found.items()},
        largest_logit=largest if isfinite(largest) else None,
        same_logits=same,
        notes=notes,
    )


@show.register(Receipt)
def show_receipt(receipt: Receipt, console: Console) -> None:
    """Print a receipt as a short table."""
    dtypes = Counter(tensor.dtype for tensor in receipt.tensors)
    formats = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    differences = {key: "not compared" if value is None else f"{value:.1e}" for key, value in receipt.logits.items()}
    equal = len(receipt.tensors) - len(receipt.different)
    rows = [
        ("from", receipt.source),
        ("to", receipt.target),
        ("architecture", receipt.architecture),
        ("tensors", f"{len(receipt.tensors):,} ({formats})"),
        ("parameters", f"{receipt.parameters:,}"),
        ("equal, read back", f"{equal:,} of {len(receipt.tensors):,}, bitwise"),
        ("logits", _VERDICTS[receipt.same_logits]),
        ("largest difference of logits", ", ".join(f"{key}: {text}" for key, text in differences.items())),
    ]
    if receipt.ignored:
        rows.append(("ignored", ", ".join(receipt.ignored)))
    console.print(ShownTable.from_rows(("", " "), rows).to_terminal(console, header=False), end="", markup=False)
    for note in receipt.notes:
        console.print(f"note: {note}", markup=False)
