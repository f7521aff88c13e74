"""A comparison of runs as one self-contained HTML page with its pictures and numbers, and in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hybridtron.files import json_text
from hybridtron.monitoring.compare import tables
from hybridtron.monitoring.compare.comparison import NOISE, Comparison
from hybridtron.monitoring.compare.plots import draw
from hybridtron.monitoring.compare.run import AXES
from hybridtron.reporting.page import render, render_text
from hybridtron.reporting.publish import publish
from hybridtron.reporting.shown import show

PAGE = "report.html"


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write report.html, loss-AXIS.png and result.json to a folder of their own; return the page.

    Raises UserError where the folder holds other files.
    """
    images = draw(comparison)
    content = {"tables": tables, "images": images, "axes": AXES, "noise": NOISE}
    page = render(__package__, "compare.html.j2", comparison=comparison, **content)
    files = {f"loss-{axis}.png": image for axis, image in images.items()}
    publish(out, {PAGE: page.encode(), "result.json": (json_text(comparison.as_json()) + "\n").encode(), **files})
    return out / PAGE


@show.register(Comparison)
def _(comparison: Comparison, console: Console) -> None:
    """Print both tables, the settings that differ, and what is not comparable."""
    text = render_text(
        __package__, "summary.txt.j2", comparison=comparison, tables=tables, console=console, noise=NOISE
    )
    console.print(text, markup=False, soft_wrap=True)
