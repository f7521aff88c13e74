"""Pictures of measured efficiency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridtron.efficiency.study import Efficiency, Rates
from hybridtron.reporting.numbers import grouped, short_number
from hybridtron.reporting.pictures import HUES, label_axes, legend_below, log_ticks, new_figure, png

WIDTH, HEIGHT = 10.0, 3.6  # inches
PANELS: tuple[tuple[str, str, Callable[[Rates], float]], ...] = (
    ("Training", "tokens per second", lambda row: row.tokens_per_s["train"]),
    ("Next token", "milliseconds", lambda row: 1000 * row.seconds["decode"]),
    ("State", "bytes per sequence", lambda row: row.state_bytes),
)


def draw(efficiency: Efficiency) -> dict[str, bytes]:
    """Return a PNG image by file name for each batch size: rates and state against the context length."""
    batches = sorted({row.batch for row in efficiency.rates})
    return {f"batch-{batch}.png": _panels(efficiency, batch) for batch in batches}


def _panels(efficiency: Efficiency, batch: int) -> bytes:
    figure = new_figure(WIDTH, HEIGHT)
    panels = figure.subplots(1, len(PANELS))
    for panel, (title, quantity, value) in zip(panels, PANELS, strict=True):
        for number, model in enumerate(efficiency.models):
            rows = [row for row in efficiency.rates if row.model == model and row.batch == batch]
            look: dict[str, Any] = {"marker": "os^Dv<>p"[number % 8], "color": HUES[number % len(HUES)], "label": model}
            panel.plot([row.length for row in rows], [value(row) for row in rows], linewidth=1.4, **look)
        values = [value(row) for row in efficiency.rates if row.batch == batch]
        _scale(panel, sorted({row.length for row in efficiency.rates}), 0.9 * min(values), 1.1 * max(values))
        label_axes(panel, title, "tokens of context", quantity)
    legend_below(figure, panels, 4, 9)
    return png(figure)


def _scale(panel: Any, lengths: list[int], low: float, high: float) -> None:
    """Show both axes on logarithmic scales, with a tick at each length."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    ticks = log_ticks(low, high)
    panel.set_yticks(ticks, [short_number(tick) for tick in ticks])
    panel.set_yticks([], minor=True)
    panel.set_xticks(lengths, [grouped(length) for length in lengths])
    panel.set_xticks([], minor=True)
