"""A search in the terminal: a bar, or a line for every evaluation where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from hybridtron.composer.outcome import Outcome
from hybridtron.composer.progress import Progress
from hybridtron.pattern import Pattern


class View:
    def __init__(self, name: str) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.name = name
        self.bar: Bar | None = None
        self.said = (-1, -1)  # step and evaluations that the last line told of
        if sys.stderr.isatty():
            columns: list[Any] = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
            ]
            self.bar = Bar(*columns, console=self.console, expand=True)
            self.task = self.bar.add_task(name, total=None, status="")
            self.bar.start()

    def watch(self, progress: Progress) -> None:
        step = progress.steps[-1]
        done = len(step.finished) + len(step.failed)
        status = ""
        if step.finished:
            best = max(step.finished, key=lambda o: o.score)
            status = f"best {best.score:.4f}  {Pattern(step.space.names(best.pattern))}"
        which = f" step {step.number + 1}/{progress.total_steps}" if progress.total_steps > 1 else ""
        if self.bar:
            self.bar.update(self.task, description=self.name + which, total=step.budget, completed=done, status=status)
        elif (step.number, done) != self.said:
            self.say(f"{self.name}{which}: {done}/{step.budget} evaluated  {status}".rstrip())
        self.said = (step.number, done)

    def say(self, text: str) -> None:
        (self.bar.console if self.bar else self.console).print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def summary(outcome: Outcome, page: object) -> str:
    """What a finished search says."""
    lines = [f"{len(outcome.observations)} of {outcome.step.space.size:,} patterns evaluated"]
    width = max(len(row["rule"]) for row in outcome.alternatives())
    for row in outcome.alternatives():
        score = "not evaluated" if row["score"] is None else f"{row['score']:.4f}"
        lines.append(f"{row['rule']:{width}}  {row['pattern']}  {score}")
    return "\n".join([*lines, f"page {page}"])
