"""A search in the terminal: its progress, and a summary at its end."""

from __future__ import annotations

from textwrap import indent

from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.sentences import count_evaluated, pattern_text, verdict
from hybridtron.composer.report.tables import FRONT_SHOWN, front, rules
from hybridtron.pattern import Pattern
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.progress import ProgressView
from hybridtron.reporting.table import Table


class SearchProgress(ProgressView):
    """A progress view that takes the states of a search: a line for every evaluation where there is no terminal."""

    def __init__(self, name: str, quiet: bool = False) -> None:
        super().__init__(quiet, seconds_between_lines=0)
        self.name = name
        self.shown: tuple[str, int] | None = None  # step and evaluations of the last update

    def watch(self, progress: Progress) -> None:
        """Show the last step of a search."""
        step = progress.steps[-1]
        done = len(step.finished) + len(step.failed)
        status = ""
        if step.finished:
            best = max(step.finished, key=lambda o: o.score)
            status = f"best {best.score:.4f}  {Pattern(step.space.names(best.pattern))}"
        name = self.name + (f" step {step.number + 1}/{progress.total_steps}" if progress.total_steps > 1 else "")
        if self.shown and self.shown[0] != name:
            self.finish(self.shown[0])
        if (name, done) != self.shown:
            self.update(name, done, step.budget, status, f"{name}: {done}/{step.budget} evaluated  {status}".rstrip())
        self.shown = (name, done)


def summary(outcome: Outcome, page: object) -> str:
    """Return the lines that a search prints at its end."""
    lines = [count_evaluated(outcome) + ("" if outcome.progress.is_complete else ", so far")]
    several = outcome.progress.total_steps > 1
    if outcome.front:
        count = len(outcome.front)
        shown = f", {FRONT_SHOWN} of them" if count > FRONT_SHOWN else ""
        lines += [f"Pareto front of {plural(count, 'pattern')}{shown}:", _indented(front(outcome, FRONT_SHOWN))]
    before = outcome.progress.steps[:-1]
    lines += [f"step {s.number + 1} handed on {pattern_text(s.space, s.found)}" for s in before if s.found]
    which = f"step {outcome.step.number + 1}, " if several else "by score alone, " if outcome.front else ""
    lines += [f"{which}what each rule returns:", _indented(rules(outcome, outcome.step)), verdict(outcome)]
    return "\n".join([*lines, *([outcome.note] if outcome.note else []), f"page {page}"])


def _indented(table: Table) -> str:
    return indent(table.to_terminal().rstrip("\n"), "  ")
