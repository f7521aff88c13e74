"""Results that `print` shows as the command line does. The module that prints a kind of result registers it."""

from __future__ import annotations

import io
from functools import singledispatch
from html import escape

from rich.console import Console

from hybridtron.reporting.table import PIPE_WIDTH


@singledispatch
def show(result: object, console: Console) -> None:
    """Print a result of a kind that has registered how, else its repr."""
    console.print(repr(result), markup=False)


class Shown:
    """Base of results: `str()` and a notebook give what `show` prints, without colours."""

    def __str__(self) -> str:
        text = io.StringIO()
        show(self, Console(file=text, width=PIPE_WIDTH, highlight=False, color_system=None))
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
