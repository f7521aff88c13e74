"""Which files belong to a corpus."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from hybridtron.data.datasets.indexed_dataset import PARTIAL_NAME
from hybridtron.data.preprocessing.report import REPORT_NAME
from hybridtron.data.preprocessing.work_folder import is_work_folder
from hybridtron.errors import UserError

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FILES_COUNTED = 1000  # between two reports of progress
PREPARED_NAMES = frozenset({REPORT_NAME, "sources.jsonl", "damaged.jsonl"})  # in a prepared folder


@dataclass(frozen=True)
class Source:
    """One input file. `name` is its posix path below the folder that was given: the held-out split depends on it.

    `split` is `train` or `valid` where the user chose, None where the split is drawn.
    """

    path: Path
    name: str
    size: int
    modified_ns: int
    split: str | None = None

    @property
    def is_jsonl(self) -> bool:
        return self.path.name.endswith(JSONL_SUFFIXES)

    @property
    def is_packed(self) -> bool:
        return self.is_jsonl and not self.can_be_cut

    @property
    def can_be_cut(self) -> bool:
        """Return True where reading may start in the middle: lines without compression."""
        return self.path.name.endswith(".jsonl")


@dataclass
class SourceList:
    """The files of a corpus in their order, and those that folders held besides."""

    files: list[Source] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def find_sources(
    inputs: Sequence[Path],
    text_suffixes: Sequence[str] = (".txt",),
    valid: Sequence[Path] = (),
    on_files: Callable[[int], None] = lambda count: None,
) -> SourceList:
    """Find all files of `inputs`, folders walked in the order of their relative paths.

    `valid`: files or folders to hold out, also where `inputs` name them too; all others are then for training.
    `on_files` is called with the number of files found so far, now and then. Raises UserError for a missing path, a
    file of unknown suffix, a file given twice, and where nothing is left.
    """
    for suffix in text_suffixes:
        if not suffix.startswith(".") or suffix in JSONL_SUFFIXES:
            raise UserError(f"text_suffixes = {suffix}: expected the suffix of a text file, such as .txt")
    counter = itertools.count(1)

    def count() -> None:
        if (number := next(counter)) % FILES_COUNTED == 0:
            on_files(number)

    chosen, others = _collect(valid, text_suffixes, count), _collect(inputs, text_suffixes, count)
    held_out = set(chosen.files)
    split = "train" if valid else None
    train = [replace(source, split=split) for path, source in others.files.items() if path not in held_out]
    groups = (("train", train, inputs, others), ("valid", list(chosen.files.values()), valid, chosen))
    for what, files, given, found in groups:
        if given and not files:
            known = " ".join((*text_suffixes, *JSONL_SUFFIXES))
            ignored = (
                f"; of other suffixes: {len(found.ignored)}, such as {found.ignored[0].name}" if found.ignored else ""
            )
            raise UserError(
                f"no file left for {what} in {' '.join(map(str, given))}; expected files with {known} "
                f"(text_suffixes names others){ignored}"
            )
    files = train + [replace(source, split="valid") for source in chosen.files.values()]
    return SourceList(files, list(dict.fromkeys(others.ignored + chosen.ignored)))


def source_of(path: Path, name: str) -> Source:
    """Return the source at `path`. Raises UserError where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return Source(path, name, status.st_size, status.st_mtime_ns)


class _Found(NamedTuple):
    files: dict[Path, Source]  # by the path without links
    ignored: list[Path]


def _collect(inputs: Iterable[Path], text_suffixes: Sequence[str], count: Callable[[], None]) -> _Found:
    known = (*text_suffixes, *JSONL_SUFFIXES)
    found = _Found({}, [])

    def add(path: Path, name: str) -> None:
        source = source_of(path, name)
        if found.files.setdefault(path.resolve(), source) is not source:
            raise UserError(f"{path} is given twice")

    for given in inputs:
        if given.is_dir():
            for path in sorted(_walk(given, count), key=lambda path: path.relative_to(given).as_posix()):
                if path.name.endswith(known) and path.is_file():
                    add(path, path.relative_to(given).as_posix())
                else:
                    found.ignored.append(path)
        elif not given.exists():
            raise UserError(f"no such file or folder: {given}")
        elif not given.name.endswith(known):
            raise UserError(f"{given}: unknown suffix; expected one of {' '.join(known)} (text_suffixes names others)")
        else:
            add(given, given.name)
    return found


def _walk(folder: Path, count: Callable[[], None]) -> list[Path]:
    """Return every file below `folder`, and every link to a folder: links are not followed, but reported.

    What a preparation writes is no text, though some of it is .jsonl: its folders are left out.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}")

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        if is_work_folder(Path(parent, PARTIAL_NAME)) or set(files) >= PREPARED_NAMES:
            folders.clear()
            continue
        for name in files:
            found.append(Path(parent, name))
            count()
        found += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
    return found
