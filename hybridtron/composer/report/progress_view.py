"""A search in the terminal: a bar, or a line for every evaluation where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.report.columns import FRONT_SHOWN, front
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.tables import decimal, decimals, text_table, words
from hybridtron.composer.report.wording import course, pattern_text, verdict
from hybridtron.pattern import Pattern
from hybridtron.reporting.numbers import plural


class View:
    def __init__(self, name: str, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.name = name
        self.bar: Bar | None = None
        self.said = (-1, -1)  # step and evaluations that the last line told of
        if sys.stderr.isatty() and not quiet:
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
    lines = [course(outcome) + ("" if outcome.progress.is_complete else ", so far")]
    if outcome.front:
        count = len(outcome.front)
        shown = f", {FRONT_SHOWN} of them" if count > FRONT_SHOWN else ""
        table = [column for column in front(outcome, FRONT_SHOWN) if column.head != "#"]
        lines.append(f"Pareto front of {plural(count, 'pattern')}{shown}: {', '.join(column.head for column in table)}")
        lines += text_table(table, "  ")
    if outcome.progress.total_steps > 1:
        lines += _handed_on(outcome)
    if outcome.front or outcome.progress.total_steps > 1:
        which = f"step {outcome.step.number + 1}" if outcome.progress.total_steps > 1 else "by score alone"
        lines.append(f"{which}, what each rule returns:")
    found = outcome.alternatives()
    digits = decimals([row["score"] for row in found])
    told = ["not evaluated" if row["score"] is None else decimal(row["score"], digits) for row in found]
    rules = [words("", [row["rule"] for row in found]), words("", [row["pattern"] for row in found]), words("", told)]
    lines += [*text_table(rules), verdict(outcome)]
    if outcome.note:
        lines.append(outcome.note)
    return "\n".join([*lines, f"page {page}"])


def _handed_on(outcome: Outcome) -> list[str]:
    before = outcome.progress.steps[:-1]
    return [f"step {s.number + 1} handed on {pattern_text(s.space, s.found)}" for s in before if s.found]
