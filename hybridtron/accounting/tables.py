"""Tables in the terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

_BLANK_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


WIDE = 200  # columns where the output is no terminal, so that nothing is cut


def terminal() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def print_table(console: Console, table: Table) -> None:
    """Print the table without the blanks that rich fills lines up with."""
    with console.capture() as captured:
        console.print(table)
    text = _BLANK_END.sub(lambda end: end[0].replace(" ", ""), captured.get())
    console.file.write(text)
