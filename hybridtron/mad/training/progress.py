"""A suite in the terminal: bars, or lines where there is no terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from hybridtron.mad.tasks.protocol import setting_text
from hybridtron.mad.training.suite import Progress, Steps, Unit
from hybridtron.reporting.numbers import duration


class View:
    """A line for every setting that is done; the steps of those that train as bars, or as a line now and then."""

    def __init__(self, accuracy: str, seconds_between_lines: float = 60) -> None:
        """`accuracy`: micro or macro, of which a setting's line tells the best cell."""
        self.console = Console(stderr=True, highlight=False)
        self.accuracy = accuracy
        self.seconds_between_lines = seconds_between_lines
        self.bars: Bars | None = None
        self.shown: dict[str, TaskID] = {}
        self.told: dict[str, float] = {}
        self.began: dict[str, tuple[float, int]] = {}  # when a setting's steps were first heard, and how many
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[reached]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bars = Bars(*columns, console=self.console)
            self.bars.start()

    def steps(self, unit: Unit, steps: Steps) -> None:
        name = _name(unit)
        reached = "" if steps.accuracy is None else f"{100 * steps.accuracy:.1f} %"
        if self.bars:
            if name not in self.shown:
                self.shown[name] = self.bars.add_task(name, total=steps.planned, reached="")
            self.bars.update(self.shown[name], completed=steps.done, reached=reached)
            return
        now = time.monotonic()
        self.began.setdefault(name, (now, steps.done))
        if now - self.told.setdefault(name, now) >= self.seconds_between_lines:
            self.told[name] = now
            parts = [name, f"step {steps.done}/{steps.planned}", reached, self._left(name, steps, now)]
            self.say("  ".join(filter(None, parts)))

    def _left(self, name: str, steps: Steps, now: float) -> str:
        """The time that the rest takes if nothing stops early, once there is a pace."""
        began, before = self.began[name]
        if steps.done == before:
            return ""
        return f"at most {duration((now - began) / (steps.done - before) * (steps.planned - steps.done))} left"

    def unit(self, progress: Progress) -> None:
        name = _name(progress.unit)
        if self.bars and name in self.shown:
            self.bars.remove_task(self.shown.pop(name))
        best = max(progress.rows, key=lambda row: row[f"select_{self.accuracy}"])
        reached = f"{100 * best[f'test_{self.accuracy}']:.1f} % with lr {best['lr']:g} decay {best['weight_decay']:g}"
        self.say(f"{progress.done}/{progress.total}  {name}  {reached}  {progress.seconds:.0f} s")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bars:
            self.bars.stop()


def _name(unit: Unit) -> str:
    return f"{unit.task}  {setting_text(unit.task, unit.setting)}"
