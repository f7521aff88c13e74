"""The progress of a run, for a person: a bar on a terminal, a line per logged step elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressView:
    """Shows nothing on processes other than the first."""

    def __init__(self, name: str, first_step: int, last_step: int, visible: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.visible = visible
        self.name, self.last_step = name, last_step
        self.bar: Progress | None = None
        if visible and sys.stderr.isatty():
            columns: list[Any] = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
            ]
            self.bar = Progress(*columns, console=self.console, expand=True)
            self.task = self.bar.add_task(name, total=last_step, completed=first_step, status="")
            self.bar.start()

    def step(self, row: dict[str, Any], seconds_left: float, logged: bool) -> None:
        """After every step; `row` is its metrics."""
        if not self.visible:
            return
        left = _clock(seconds_left)
        status = f"loss {row['loss']:.4f}  {_si(row['tokens_per_s'])} tokens/s  {left} left"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], status=status)
        elif logged:
            self.say(f"step {row['step']}/{self.last_step}  {status}")

    def say(self, text: str) -> None:
        if self.visible:
            (self.bar.console if self.bar else self.console).print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _si(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"
