"""Tables in the terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

_BLANK_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


def print_table(console: Console, table: Table) -> None:
    """Print the table without the blanks that rich fills lines up with."""
    with console.capture() as captured:
        console.print(table)
    text = _BLANK_END.sub(lambda end: end[0].replace(" ", ""), captured.get())
    console.file.write(text)
