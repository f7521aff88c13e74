"""Patterns from outside: their notation, and files of them that are checked against a space row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.composer.space.baselines import baseline
from hybridtron.composer.space.config import SpaceConfig
from hybridtron.composer.space.space import Pattern, Space
from hybridtron.composer.space.violations import violations
from hybridtron.errors import UserError
from hybridtron.files import read_plain
from hybridtron.pattern import Pattern as Layers
from hybridtron.pattern import PatternError, from_composer, read, to_composer

COLUMN, NAME = "pattern", "name"


@dataclass(frozen=True)
class Layout:
    """A row of a file: a pattern of the space, or the reasons why it is none."""

    line: int
    text: str
    name: str | None
    pattern: Pattern | None
    reasons: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Return all reasons in one line; empty for a valid row."""
        return "; ".join(self.reasons)

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs."""
        return {
            "line": self.line,
            "pattern": self.text,
            "name": self.name,
            "valid": self.pattern is not None,
            "reasons": list(self.reasons),
        }


def read_layers(text: str, space: SpaceConfig) -> tuple[str, ...]:
    """Read a pattern of a space's blocks: a baseline's name, by the letters that its config gives, or in any dialect.

    Raises PatternError.
    """
    if (named := baseline(text, space.blocks, space.layers)) is not None:
        return named
    if space.letters:
        try:
            return from_composer(text, space.letters, space.blocks).layers
        except PatternError:
            pass
    names = space.letter_names
    try:
        return read(text, space.blocks, composer_names=names).layers
    except PatternError as error:
        if not text.isupper() or not text.isalpha():
            raise
        from_composer(text, names, space.blocks)  # raises for the letter that is wrong; else the text is ambiguous
        first = str(error).splitlines()[0].partition(": expected")[0]
        raise PatternError(f"{first}: expected names of blocks, or space.letters that say what it means") from None


def letters_of(layers: Sequence[str], space: SpaceConfig) -> str | None:
    """Return a pattern as one letter a layer; None where a block of the space has none."""
    names = space.letter_names
    return to_composer(Layers(tuple(layers)), names, "letters") if {*space.blocks} <= {*names.values()} else None


def read_layouts(path: Path, config: SpaceConfig, space: Space) -> list[Layout]:
    """Read the patterns of a CSV or JSONL file: the column `pattern` beside an optional `name`, or one without header.

    Every row is checked against `space`, whose blocks are those of `config`. Raises UserError where the file cannot be
    read or has no patterns.
    """
    try:
        text = read_plain(path).decode("utf-8-sig")  # spreadsheets begin a CSV file with a mark
        rows = [*(_json_rows if path.suffix in (".jsonl", ".ndjson") else _csv_rows)(path, text)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text of short lines"
        raise UserError(f"{path}: {reason}; expected a CSV or JSONL file of patterns") from None
    seen: dict[Pattern, int] = {}
    found = []
    for line, given, name in rows:
        pattern, reasons = _checked(given, config, space)
        if pattern is not None and not reasons:
            first = seen.setdefault(pattern, line)
            reasons = [f"is the pattern of line {first}"] * (first != line)
        found.append(Layout(line, given, name, None if reasons else pattern, tuple(reasons)))
    if not found:
        raise UserError(f"{path}: has no rows; expected a pattern in each line")
    return found


def _checked(text: str, config: SpaceConfig, space: Space) -> tuple[Pattern | None, list[str]]:
    try:
        pattern = space.indices(read_layers(text, config))
    except PatternError as error:
        return None, [str(error).splitlines()[0].removeprefix("pattern: ")]
    return pattern, violations(space, pattern)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield line, pattern and name of each row that is not empty."""
    reader = csv.reader(text.splitlines())
    header: list[str] | None = None
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if header is None and (COLUMN in cells or len(cells) > 1):
            if COLUMN not in cells:
                raise UserError(
                    f"{path}:{reader.line_num}: has no column {COLUMN}; expected a header with it, or one column alone"
                )
            header = cells
            continue
        header = header or [COLUMN]
        named = dict(zip(header, cells, strict=False))
        yield reader.line_num, named.get(COLUMN, ""), named.get(NAME) or None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, str, str | None]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        row = {COLUMN: row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get(COLUMN), str):
            raise UserError(f"{path}:{number}: expected a JSON object with a text {COLUMN}")
        name = row.get(NAME)
        yield number, row[COLUMN], name if isinstance(name, str) else None
