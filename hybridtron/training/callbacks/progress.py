"""Progress of a run on standard error: a bar on a terminal, else a line per logged step."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hybridtron.training.callbacks.base import Callback, Row, TrainContext


class ProgressBar(Callback):
    """Print progress, skipped steps and evaluations; nothing where not `visible`."""

    def __init__(self, visible: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.visible = visible
        self.bar: Progress | None = None

    def on_train_start(self, context: TrainContext) -> None:
        """Show the bar, where standard error is a terminal."""
        if self.visible and sys.stderr.isatty() and context.state.step < context.config.train.steps:
            columns: list[Any] = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
            ]
            self.bar = Progress(*columns, console=self.console, expand=True)
            total, done = context.config.train.steps, context.state.step
            self.task = self.bar.add_task(context.config.name, total=total, completed=done, status="")
            self.bar.start()

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Advance the bar or print the step's line; print a skipped update and an evaluation in any case."""
        if not self.visible:
            return
        config, step, rate = context.config, row["step"], row["tokens_per_s"]
        left = _duration((config.train.steps - step) * config.tokens_per_step / rate)
        status = f"loss {row['loss']:.4f}  {_si(rate)} tokens/s  {left} left"
        if self.bar:
            self.bar.update(self.task, completed=step, status=status)
        elif logged:
            self.print_line(f"step {step}/{config.train.steps}  {status}")
        if context.state.skipped_in_a_row:
            self.print_line(f"step {step}: loss {row['loss']} or a gradient is not finite; the step is skipped")
        if "valid_loss" in row:
            bits = row["valid_bits_per_byte"]
            in_bits = "" if bits is None else f" = {bits:.3f} bits per byte"
            self.print_line(f"step {step}: held-out loss {row['valid_loss']:.4f}{in_bits}")

    def print_line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.visible:
            self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.stop()


def _duration(seconds: float) -> str:
    """Return seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _si(value: float) -> str:
    """Return a number with an SI prefix."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"
