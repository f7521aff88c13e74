"""An ablation in the terminal: its progress, and its results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from hybridtron.ablations.events import Event
from hybridtron.ablations.report import tables
from hybridtron.ablations.results import Ablation
from hybridtron.reporting.page import render_text
from hybridtron.reporting.progress import ProgressView
from hybridtron.reporting.shown import show

if TYPE_CHECKING:
    from hybridtron.ablations.run import Progress


class StudyProgress(ProgressView):
    """A progress view that takes the states of a study: a bar, and a line for every run that ends."""

    def __init__(self, name: str) -> None:
        super().__init__(seconds_between_lines=60)
        self.name = name

    def watch(self, progress: Progress) -> None:
        """Show how many runs have ended, and those at work."""
        ended = progress.finished + progress.failed
        if progress.last and progress.last[1].kind != "step":
            name, event = progress.last
            self.print(f"{ended}/{progress.total} {name}  {_end(event)}")
        failed = f"{progress.failed} failed  " if progress.failed else ""
        at_work = [f"{name} {event.step}/{progress.steps[name]}" for name, event in progress.running.items()]
        self.update(self.name, ended, progress.total, failed + ", ".join(at_work[:2]), self._line(progress, at_work))

    def _line(self, progress: Progress, at_work: list[str]) -> str:
        return f"{self.name}: {progress.finished + progress.failed}/{progress.total} runs ended; {', '.join(at_work)}"


def _end(event: Event) -> str:
    if event.kind == "finished":
        return "finished" if event.loss is None else f"held-out loss {event.loss:.4f}"
    return f"failed: {event.cause}" if event.kind == "failed" else "stopped; it is saved"


@show.register(Ablation)
def show_ablation(ablation: Ablation, console: Console) -> None:
    """Print each axis and each cell beside the reference, and what failed or is missing."""
    text = render_text(__package__, "summary.txt.j2", ablation=ablation, tables=tables)
    console.print(text, markup=False, soft_wrap=True)
