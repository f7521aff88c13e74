"""loss.png, drawn from metrics.jsonl at every save."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from hybridtron.files import replace_file
from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext
from hybridtron.training.callbacks.metrics import read_metrics


class LossPlot(FileWriter):
    """Draw the loss curve of a metrics file."""

    def __init__(self, metrics_file: Path, file: Path) -> None:
        self.metrics_file, self.file = metrics_file, file

    def on_save(self, context: TrainContext, checkpoint: Path) -> None:
        """Draw all rows so far."""
        plot_loss(read_metrics(self.metrics_file), self.file, context.config.name)


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
