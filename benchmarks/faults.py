"""Join the results of fault campaigns into one file, and print their table for docs/reliability.md.

python benchmarks/faults.py CAMPAIGN/results.jsonl ... --json benchmarks/results/faults-DATE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.errors import UserError
from hybridtron.faults.outcome import NOT_FIRED, Result
from hybridtron.faults.report import table_of
from hybridtron.files import read_lines, read_plain

DEFAULTS: dict[str, Any] = {"layout": "", "point": ""}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a campaign's results. Raises UserError where the file holds others."""
    lines = read_lines(read_plain(file))
    for line in lines:
        try:
            Result(**{**DEFAULTS, **line.value})
        except TypeError:
            raise UserError(f"{file}, line {line.number}: expected a row of results.jsonl of a campaign") from None
    return [line.value for line in lines]


def write_compact(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON, one on each line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results, rows = [], []
    for file in options.files:
        found = read_rows(file)
        results += [Result(**{**DEFAULTS, **row}) for row in found]
        rows += [{"campaign": file.parent.name, **row} for row in found]
    fired = [row for row in rows if row["outcome"] != NOT_FIRED]
    if options.json:
        write_compact(options.json, fired)
    for processes in (None, *sorted({result.processes for result in results if result.way == "launched"})):
        some = [r for r in results if processes is None or (r.way == "launched" and r.processes == processes)]
        print(f"\n{'all' if processes is None else f'launched, {processes} processes'}\n")
        table = table_of(some)
        heads = [column.label for column in table.columns]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([str(cell) for cell in row] for row in table.rows())]
        print("\n".join("| " + " | ".join(cells) + " |" for cells in lines))


if __name__ == "__main__":
    sys.exit(exit_code(main))
