"""conversion.json: what a conversion read and wrote, and what was found by reading it back."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import json
import logging
import math
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from hybridtron import __version__
from hybridtron.accounting.doctor import installed_version
from hybridtron.config.nearest import one_of
from hybridtron.convert.formats.source import Source, dtype_name
from hybridtron.convert.mapping.table import Table
from hybridtron.convert.streaming import Side, compare
from hybridtron.errors import UserError, cause_of
from hybridtron.files import open_to_read, replace_file
from hybridtron.reporting.shown import Shown, show
from hybridtron.reporting.table import Table as ShownTable

logger = logging.getLogger(__name__)

NAME = "conversion.json"
TOLERANCE = 1e-4  # of logits, relative to the largest one
PACKAGES = ("torch", "transformers", "megatron-core", "safetensors")
LARGEST = 50_000_000  # parameters of a model whose logits "auto" compares

Logits = Literal["auto", "always", "never"]
_VERDICTS = {None: "not compared", True: f"agree, within {TOLERANCE:.0e} of the largest", False: "differ"}


@dataclass(frozen=True)
class TensorRecord:
    """A tensor there, and whether what was written is bitwise what was read; None where that was not checked."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    equal: bool | None


@dataclass(frozen=True)
class Receipt(Shown):
    """A conversion. Hashes are sha256 by file; differences of logits are the largest, in fp32, or None.

    `vocabulary` has the rows of the embedding that were read and written, where their number was to change; shapes and
    `parameters` are those after that. `seconds` are those of reading and writing the tensors (convert), of reading them
    back and of hashes (check).
    """

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
    seconds: dict[str, float]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    vocabulary: dict[str, int] | None = None
    largest_logit: float | None = None
    same_logits: bool | None = None  # within TOLERANCE of the largest; None where they were not compared

    @property
    def different(self) -> list[str]:
        """Return the tensors that are not bitwise equal."""
        return [tensor.name for tensor in self.tensors if tensor.equal is False]

    @property
    def checked(self) -> bool:
        """Return whether the tensors were read back."""
        return all(tensor.equal is not None for tensor in self.tensors)

    def as_json(self) -> dict[str, Any]:
        """Return what conversion.json holds."""
        return {"equal": not self.different if self.checked else None, **asdict(self)}


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
    vocabulary: dict[str, int] | None = None,
    logits: Logits = "auto",
    check: bool = True,
    began: float | None = None,
    rounded: Callable[[Path], None] | None = None,
) -> Receipt:
    """Compare what was written with what was read, write conversion.json, and return what it holds.

    It is written before logits are compared, and again after. Without `check` nothing is read back, and there are no
    hashes. The conversion `began` at this time of `time.perf_counter`. Where number formats were converted, `rounded`
    writes the source with rounded values, whose logits are compared: rounding moves them by more than TOLERANCE.

    Raises OSError, after it is written, where a tensor differs, and what comparing logits raises where `logits` is
    always.
    """
    written = time.perf_counter()
    seconds = {"convert": round(written - began, 2)} if began is not None else {}
    if check:
        equal, source_files, target_files = _check(table, ours, theirs, source_folder, target_folder, verb)
        seconds["check"] = round(time.perf_counter() - written, 2)
    else:
        equal, source_files, target_files = {}, {}, {}
        notes = [*notes, _UNCHECKED]
    receipt = Receipt(
        verb,
        table.architecture,
        str(source_folder),
        source_files,
        str(target_folder),
        target_files,
        _records(table, theirs, equal),
        sum(math.prod(shape) for shape in table.shapes.values()),
        {"TP1": None, "TP2": None},
        _versions(),
        seconds,
        list(ignored),
        list(notes),
        vocabulary,
    )
    compares = [_INTERRUPTED] if logits != "never" and not receipt.different else []
    _write(replace(receipt, notes=[*notes, *compares]), into)
    if receipt.different:
        raise _differs(receipt)
    if compares:
        receipt = _with_logits(receipt, logits, run, hf, rounded)
        _write(receipt, into)
    return receipt


def _differs(receipt: Receipt) -> OSError:
    what = f"{len(receipt.different)} tensors are not what was written, first {receipt.different[0]}"
    return OSError(errno.EIO, what, receipt.target)


_UNCHECKED = "tensors were not read back, and files have no sha256: check = False"
_INTERRUPTED = "logits were not compared: the conversion was interrupted"


def _write(receipt: Receipt, folder: Path) -> None:
    replace_file(folder / NAME, json.dumps(receipt.as_json(), indent=2, allow_nan=False) + "\n")


def _records(table: Table, theirs: Source, equal: Mapping[str, bool]) -> list[TensorRecord]:
    names = {entry.name for entry in table.entries}
    return [
        TensorRecord(name, info.shape, dtype_name(info.dtype), equal.get(name))
        for name, info in theirs.tensors.items()
        if name in names
    ]


def _check(
    table: Table, ours: Source, theirs: Source, source_folder: Path, target_folder: Path, verb: str
) -> tuple[Mapping[str, bool], dict[str, str], dict[str, str]]:
    """Return whether each tensor there is equal, and the hashes of source and target, computed meanwhile."""
    written: Side = "ours" if verb.startswith("from-") else "theirs"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        source_files, target_files = (pool.submit(hashes, folder) for folder in (source_folder, target_folder))
        equal = compare(table, ours, theirs, written=written)
        return equal, source_files.result(), target_files.result()


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder and of checkpoints in it, but for conversion.json, by its path."""
    found = [*folder.glob("*"), *folder.glob("step_*/*")]
    files = sorted(path for path in found if path.is_file() and path.name != NAME)
    return {str(path.relative_to(folder)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _versions() -> dict[str, str]:
    found = {name: version for name in PACKAGES if (version := installed_version(name))}
    return {"hybridtron": __version__, "python": platform.python_version(), **found}


def _with_logits(
    receipt: Receipt, choice: Logits, run: Path, hf: Path, rounded: Callable[[Path], None] | None
) -> Receipt:
    """Return a receipt with what comparing logits gave, or, where that is not asked for, why it gave nothing."""
    if choice == "auto" and receipt.parameters > LARGEST:
        why = f"more than {LARGEST:,} parameters; logits='always' compares them"
        return replace(receipt, notes=[*receipt.notes, f"logits were not compared: {why}"])
    try:
        from hybridtron.convert.logits import largest_differences

        with tempfile.TemporaryDirectory(prefix="hybridtron-") as folder:
            if rounded is not None:
                source = Path(folder, "rounded")
                rounded(source)
                run, hf = (run, source) if receipt.verb.startswith("from-") else (source, hf)
            found, largest, why_not = largest_differences(run, hf)
    except Exception as error:
        if choice == "always":
            raise
        logger.debug("logits cannot be compared", exc_info=True)
        return replace(receipt, notes=[*receipt.notes, f"logits were not compared: {cause_of(error)}"])
    notes = [*receipt.notes, *why_not]
    compared = {key: value for key, value in found.items() if value is not None}
    notes += [f"logits at {key} differ by no finite number" for key, value in compared.items() if not isfinite(value)]
    same = all(value <= TOLERANCE * largest for value in compared.values()) if compared else None
    if same is False:
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
    count = len(receipt.tensors)
    equal = f"{count - len(receipt.different):,} of {count:,}, bitwise" if receipt.checked else "not checked"
    rows = [
        ("from", receipt.source),
        ("to", receipt.target),
        ("architecture", receipt.architecture),
        ("tensors", f"{len(receipt.tensors):,} ({formats})"),
        ("parameters", f"{receipt.parameters:,}"),
        ("equal, read back", equal),
        ("logits", _VERDICTS[receipt.same_logits]),
        ("largest difference of logits", ", ".join(f"{key}: {text}" for key, text in differences.items())),
    ]
    if receipt.seconds:
        rows.append(("seconds", ", ".join(f"{step} {seconds}" for step, seconds in receipt.seconds.items())))
    if receipt.vocabulary:
        rows.append(("vocabulary", "{read:,} rows read, {written:,} written".format_map(receipt.vocabulary)))
    if receipt.ignored:
        rows.append(("ignored", ", ".join(receipt.ignored)))
    console.print(ShownTable.from_rows(("", " "), rows).to_terminal(console, header=False), end="", markup=False)
    for note in receipt.notes:
        console.print(f"note: {note}", markup=False)
