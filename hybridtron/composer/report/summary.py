"""A search in the terminal: its progress, and a summary at its end."""

from __future__ import annotations

from rich.console import Console

from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.report import tables
from hybridtron.composer.report.outcome import Outcome, winner
from hybridtron.pattern import Pattern
from hybridtron.reporting.page import render_text
from hybridtron.reporting.progress import ProgressView
from hybridtron.reporting.shown import show


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
            best = winner(step)
            status = f"best {best.score:.4f}  {Pattern(step.space.names(best.pattern))}"
        name = self.name + (f" step {step.number + 1}/{progress.total_steps}" if progress.total_steps > 1 else "")
        if self.shown and self.shown[0] != name:
            self.finish(self.shown[0])
        if (name, done) != self.shown:
            self.update(name, done, step.budget, status, f"{name}: {done}/{step.budget} evaluated  {status}".rstrip())
        self.shown = (name, done)


@show.register(Outcome)
def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print what a search found: its counts, its Pareto front and what each rule returns."""
    console.print(summary(outcome), markup=False, soft_wrap=True)


def summary(outcome: Outcome) -> str:
    """Return the lines that a search prints at its end."""
    return render_text(__package__, "summary.txt.j2", outcome=outcome, tables=tables)
