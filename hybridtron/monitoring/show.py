"""Runs as a table on a terminal of 80 columns or more, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybridtron.monitoring.runs import Runs, RunStatus
from hybridtron.reporting.numbers import NONE, duration, short_number
from hybridtron.reporting.shown import show

STYLES = {"running": "green", "waiting": "cyan", "failed": "red", "dead": "red", "unknown": "red"}
REFRESH_SECONDS = 2.0
PRINTABLE = dict.fromkeys((*range(32), 127), "?")  # a name may come from anyone


def table(runs: Runs) -> Group:
    """Return the table, with notes below it."""
    if not runs.runs:
        return Group(Text(f"no runs in {runs.folder}"))
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("run", overflow="fold", min_width=10)
    for label in ("state", "step", "loss", "tokens/s", "left", "restarts", "effective"):
        grid.add_column(label, justify="left" if label == "state" else "right", no_wrap=True)
    for run in runs.runs:
        grid.add_row(*_cells(run))
    notes = [Text(f"{run.name}: {note}".translate(PRINTABLE)) for run in runs.runs for note in run.notes]
    return Group(grid, *notes)


def _cells(run: RunStatus) -> list[Text]:
    """Return the cells of a run's row."""
    of = f"/{run.steps}" if run.steps else ""
    cells = (
        NONE if run.loss is None else f"{run.loss:.3f}",
        NONE if run.tokens_per_s is None else short_number(float(f"{run.tokens_per_s:.2g}")),
        NONE if run.seconds_left is None else duration(run.seconds_left),
        str(run.restarts),
        NONE if run.effective is None else f"{run.effective:.0%}",
    )
    state = Text(run.state, style=STYLES.get(run.state, ""))
    name, step = Text(run.name.translate(PRINTABLE)), Text(f"{NONE if run.step is None else run.step}{of}")
    return [name, state, step, *map(Text, cells)]


@show.register(Runs)
def _(runs: Runs, console: Console) -> None:
    console.print(table(runs))


def watch(read: Callable[[], Runs], console: Console) -> None:
    """Show the runs and read them again every few seconds, until Ctrl-C."""
    with Live(table(read()), console=console, auto_refresh=False) as live:
        for runs in _again(read):
            live.update(table(runs), refresh=True)


def _again(read: Callable[[], Runs]) -> Iterator[Runs]:
    """Yield the runs every few seconds."""
    while True:
        yield read()
        time.sleep(REFRESH_SECONDS)
