"""conversion.json: what a conversion read and wrote, and what was found by reading it back."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from hybridtron import __version__
from hybridtron.accounting.doctor import installed_version
from hybridtron.config.nearest import one_of
from hybridtron.convert.formats.source import Source
from hybridtron.convert.streaming import Table, differing
from hybridtron.errors import UserError
from hybridtron.files import open_to_read, replace_file
from hybridtron.reporting.shown import Shown, show
from hybridtron.reporting.table import Table as ShownTable

NAME = "conversion.json"
PACKAGES = ("torch", "transformers", "megatron-core", "safetensors")
BLOCK = 8 * 2**20  # bytes that are hashed at once
LARGEST = 50_000_000  # parameters of a model whose logits "auto" compares

Logits = Literal["auto", "always", "never"]


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

    @property
    def different(self) -> list[str]:
        """Return the tensors that are not bitwise equal."""
        return [tensor.name for tensor in self.tensors if not tensor.equal]

    def as_json(self) -> dict[str, Any]:
        """Return what conversion.json holds."""
        return {"equal": not self.different, **asdict(self)}


def check_logits_choice(choice: str) -> None:
    """Raise UserError for what `logits` may not be."""
    choices = ("auto", "always", "never")
    if choice not in choices:
        raise UserError(f"logits = {choice!r}: expected {one_of(choice, choices)}")


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

    Raises OSError, after it is written, where a tensor differs.
    """
    equal = dict(differing(table, ours, theirs, written="ours" if verb.startswith("from-") else "theirs"))
    records = [
        TensorRecord(name, info.shape, str(info.dtype).removeprefix("torch."), equal[name])
        for name, info in theirs.tensors.items()
        if name in equal
    ]
    parameters = sum(math.prod(shape) for shape in table.shapes.values())
    found, why = _logits(logits, parameters, run, hf)
    receipt = Receipt(
        verb,
        table.architecture,
        str(source_folder),
        hashes(source_folder),
        str(target_folder),
        hashes(target_folder),
        records,
        parameters,
        found,
        _versions(),
        list(ignored),
        [*notes, *why],
    )
    replace_file(into / NAME, json.dumps(receipt.as_json(), indent=2) + "\n")
    if receipt.different:
        what = f"{len(receipt.different)} tensors are not what was written, first {receipt.different[0]}"
        raise OSError(errno.EIO, what, str(target_folder))
    return receipt


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


def _logits(choice: Logits, parameters: int, run: Path, hf: Path) -> tuple[dict[str, float | None], list[str]]:
    """Return the largest differences of logits by layout, and why there are none."""
    none: dict[str, float | None] = {"TP1": None, "TP2": None}
    if choice == "never":
        return none, []
    if choice == "auto" and parameters > LARGEST:
        return none, [f"logits were not compared: more than {LARGEST:,} parameters; logits='always' compares them"]
    if installed_version("transformers") is None:
        if choice == "always":
            raise UserError("logits = 'always': needs transformers, of the extra hf")
        return none, ["logits were not compared: transformers is not installed"]
    from hybridtron.convert.logits import largest_differences

    return largest_differences(run, hf)


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
        ("largest difference of logits", ", ".join(f"{key}: {text}" for key, text in differences.items())),
    ]
    if receipt.ignored:
        rows.append(("ignored", ", ".join(receipt.ignored)))
    console.print(ShownTable.from_rows(("", " "), rows).to_terminal(console, header=False), end="", markup=False)
    for note in receipt.notes:
        console.print(f"note: {note}", markup=False)
