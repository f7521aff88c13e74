"""What a run reports while it trains: metrics.jsonl, TensorBoard, loss.png."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybridtron.training.run_folder.folder import replace_text

Row = dict[str, Any]


class MetricsWriter:
    """Appends a row per logged step; a resumed run first drops the rows after the step it resumes from."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.file) if row["step"] <= first_step]
        replace_text(self.file, "".join(_line(row) for row in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, row: Row) -> None:
        with self.file.open("a") as file:
            file.write(_line(row))
        for key, value in row.items():
            if key not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                self.board.add_scalar(key, value, row["step"])
        for layer, shares in row.get("expert_load", {}).items():
            self.board.add_scalar(f"busiest_expert/{layer}", max(shares) * len(shares), row["step"])  # 1: all alike

    def close(self) -> None:
        self.board.close()


def read_metrics(file: Path) -> list[Row]:
    """The rows of a metrics file; a line that is damaged, as the last one may be by a kill, is left out."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Row) -> str:
    """JSON has no NaN: what is not finite is null."""
    return json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}) + "\n"


def plot_loss(rows: Iterable[Row], file: Path, title: str) -> None:
    """Training loss of each logged step and held-out loss, against tokens."""
    from matplotlib.figure import Figure

    rows = list(rows)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("valid_loss", "held out", "o--")):
        points = [(row["tokens"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(file)
