"""What the pictures of a search share."""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.composer.report.outcome import Outcome
from hybridtron.reporting.pictures import new_figure

WIDTH = 8.0  # inches of every picture
SMALL = 9  # text size of legends and remarks


def one_panel(height: float) -> tuple[Any, Any]:
    """Return a figure with its only axes."""
    figure = new_figure(WIDTH, height)
    return figure, figure.subplots()


def quantity(outcome: Outcome) -> str:
    """Return the name of the score, with the seeds that it is a mean over."""
    seeds = len(outcome.search.config.seeds)
    return outcome.search.evaluator.quantity + (f", mean over {seeds} seeds" if seeds > 1 else "")


def plain_numbers(axis: Any) -> None:
    """Show ticks without an offset, and some room where all values are equal."""
    low, high = axis.get_data_interval()
    axis.get_major_formatter().set_useOffset(False)
    if np.isfinite(low) and high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.1 * abs(high) or 0.1
        setter = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
        setter(low - room, high + room)
