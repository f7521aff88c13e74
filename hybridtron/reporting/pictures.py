"""The look of all pictures, and how they become PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

# Eight hues that people with colour blindness tell apart (Okabe and Ito, 2008), darkest first.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
_SPINE = "#9aa5b1"
_DPI = 150


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def quiet(axes: Any, size: float) -> None:
    """A faint grid behind the data, two spines, small ticks with text of this size."""
    axes.tick_params(colors=FAINT, labelsize=size, length=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SPINE)


def legend_below(figure: Any, panels: Iterable[Any], columns: int, size: float) -> None:
    """What the panels label, each label once, below them all, where it hides nothing."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, fontsize=size, labelcolor=INK,
    )  # fmt: skip


def png(figure: Any) -> bytes:
    """The figure's bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
