"""layer_statistics.jsonl and layer_statistics.png: per-layer norms of activations, gradients and updates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybridtron.files import is_number, replace_file
from hybridtron.reporting.pictures import FAINT, INK, new_figure, png
from hybridtron.training.callbacks.base import Row, TrainContext
from hybridtron.training.callbacks.metrics import MetricsFile
from hybridtron.training.callbacks.plot import RowsPlot

MEASURES = {
    "output_rms": "output of the layer (RMS)",
    "residual_rms": "residual stream after it (RMS)",
    "grad_norm": "gradient norm",
    "update_ratio": "norm of the update / norm of the weights",
}
MOST_LABELS = 40  # of layers beside a panel
MOST_TICKS = 6  # of steps below it


class LayerStatisticsFile(MetricsFile):
    """Append a row per step whose statistics were collected: for each layer its block and the numbers of MEASURES,
    null where there is none or it is not finite."""

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Append the row of a step."""
        if context.layer_statistics is None:
            return
        blocks = context.config.model.layer_names
        layers = {
            layer: ({"block": blocks[int(layer)]} if layer.isdecimal() else {})
            | {key: value if is_number(value) else None for key, value in numbers.items()}
            for layer, numbers in context.layer_statistics.items()
        }
        self._append({"step": context.state.step, "layers": layers})


class LayerStatisticsPlot(RowsPlot):
    """Draw the rows of layer_statistics.jsonl."""

    def __init__(self, rows_file: Path, file: Path) -> None:
        super().__init__(rows_file, file, plot_layer_statistics)


def plot_layer_statistics(rows: Iterable[Row], file: Path, title: str) -> None:
    """Draw a heat map of layers against steps for each measure, with a logarithmic colour."""
    rows = [row for row in rows if isinstance(row.get("layers"), dict)]
    if not rows:
        return
    layers = rows[-1]["layers"]
    figure = new_figure(12, 2.6 + 0.36 * max(4, min(len(layers), MOST_LABELS)))
    figure.suptitle(f"{title}: per-layer norms", color=INK, fontsize=12, fontweight="bold")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        _draw(figure, panel, [[_value(row, layer, measure) for row in rows] for layer in layers])
        panel.set_title(label, fontsize=10, color=INK, loc="left")
        panel.tick_params(colors=FAINT, labelsize=7, length=2)
    names = [f"{layer} {numbers.get('block', '')}".strip() for layer, numbers in layers.items()]
    shown = range(0, len(names), -(-len(names) // MOST_LABELS))
    panel.set_yticks(shown, [names[i] for i in shown])
    ticks = range(0, len(rows), max(1, -(-len(rows) // MOST_TICKS)))
    panel.set_xticks(ticks, [f"{rows[i]['step']:,}" for i in ticks])
    figure.supxlabel("step", fontsize=9, color=FAINT)
    replace_file(file, png(figure))


def _draw(figure: Any, panel: Any, table: list[list[float]]) -> None:
    """Draw one heat map; what has no value stays blank."""
    from matplotlib.colors import LogNorm

    known = [value for line in table for value in line if value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 1.0)
    norm = LogNorm(low, high if high > low else 1.01 * low)
    image = panel.imshow(table, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm)
    bar = figure.colorbar(image, ax=panel, pad=0.01)
    bar.ax.tick_params(colors=FAINT, labelsize=7, which="both")


def _value(row: Row, layer: str, measure: str) -> float:
    """Return a number of a row; NaN where it has none that a logarithm has a place for."""
    numbers = row["layers"].get(layer)
    value = numbers.get(measure) if isinstance(numbers, dict) else None
    return float(value) if is_number(value) and value > 0 else math.nan
