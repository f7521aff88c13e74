"""loss.png, drawn from metrics.jsonl as a run is saved, and other pictures of rows."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hybridtron.files import replace_file
from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext
from hybridtron.training.callbacks.metrics import read_metrics

LARGEST_SHARE = 0.01  # of the time of training that drawing may take


class RowsPlot(FileWriter):
    """Draw the rows of a file after a save, where the time since the last drawing allows it, and at the end.

    `plot` is given the rows, the file to write and a title.
    """

    def __init__(self, rows_file: Path, file: Path, plot: Callable[[Iterable[Row], Path, str], None]) -> None:
        self.rows_file, self.file, self.plot = rows_file, file, plot
        self.title = ""
        self.is_behind = False  # the run was saved after the last drawing
        self.next_drawing = 0.0  # of time.monotonic()

    def on_save(self, context: TrainContext, checkpoint: Path) -> None:
        """Draw all rows so far, unless that was done not long ago."""
        self.title, self.is_behind = context.config.name, True
        if time.monotonic() >= self.next_drawing:
            self._draw()

    def close(self) -> None:
        """Draw what was left out."""
        if self.is_behind:
            self._draw()

    def _draw(self) -> None:
        start = time.monotonic()
        self.plot(read_metrics(self.rows_file), self.file, self.title)
        self.is_behind = False
        end = time.monotonic()
        self.next_drawing = end + (end - start) / LARGEST_SHARE


class LossPlot(RowsPlot):
    """Draw the loss curve of a metrics file."""

    def __init__(self, metrics_file: Path, file: Path) -> None:
        super().__init__(metrics_file, file, plot_loss)


def plot_loss(rows: Iterable[Row], file: Path, title: str) -> None:
    """Draw training loss, its mean between logged steps, and held-out loss, against tokens."""
    from matplotlib.figure import Figure

    rows = list(rows)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("valid_loss", "held out", "o--")):
        points = [(row["tokens"], row[key]) for row in rows if None not in (row.get("tokens"), row.get(key))]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(file, picture.getvalue())
