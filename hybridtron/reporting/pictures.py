"""The look of all pictures, and how they become PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

# Eight hues that people with colour blindness tell apart (Okabe and Ito, 2008), darkest first.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
_SPINE = "#9aa5b1"
PIXELS_PER_INCH = 150


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, layout="constrained", facecolor="white")


def style_axes(axes: Any, size: float) -> None:
    """Give the axes a faint grid behind the data, two spines, and small ticks with text of this size."""
    axes.tick_params(colors=FAINT, labelsize=size, length=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SPINE)


def label_axes(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Style the axes of a picture of one panel, with a title and a label on each side."""
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x_label, color=INK, fontsize=10)
    axes.set_ylabel(y_label, color=INK, fontsize=10)
    style_axes(axes, 9)


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between low and high for a logarithmic axis; none where the bounds have no logarithm."""
    from matplotlib.ticker import Locator, LogLocator, MaxNLocator

    if not 0 < low < high < math.inf:
        return []
    decades = math.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades <= 2.4 else (1.0, 3.0) if decades <= 4 else (1.0,)
    locator: Locator = MaxNLocator(6) if decades < 0.6 else LogLocator(subs=steps, numticks=8)
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def legend_below(figure: Any, panels: Iterable[Any], columns: int, size: float) -> None:
    """Draw one legend below all panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, fontsize=size, labelcolor=INK,
    )  # fmt: skip


def png(figure: Any) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
