"""Measured efficiency as one self-contained HTML page, with its numbers and pictures beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hybridtron.efficiency.measure import PASSES, PHASES
from hybridtron.efficiency.report import tables
from hybridtron.efficiency.report.plots import draw
from hybridtron.efficiency.study import Efficiency
from hybridtron.files import json_text
from hybridtron.reporting.page import render
from hybridtron.reporting.publish import publish


def write_page(efficiency: Efficiency, folder: Path) -> Path:
    """Write report.html, efficiency.json, the pictures, and with by_block layers.csv; return the page."""
    images = draw(efficiency)
    page = render(__package__, "efficiency.html.j2", efficiency=efficiency, images=images, tables=tables)
    files = {"report.html": page.encode(), "efficiency.json": (json_text(efficiency.as_json()) + "\n").encode()}
    if efficiency.by_block:
        files["layers.csv"] = layer_table(efficiency).encode()
    publish(folder, {**files, **images})
    return folder / "report.html"


def layer_table(efficiency: Efficiency) -> str:
    """Return the table of layers as CSV: a row for each layer, context length and batch size."""
    text = io.StringIO()
    phases = [*PHASES, PASSES]
    columns = ["layer", "length", "batch", "parameters", *(f"{phase}_ms" for phase in phases), "state_bytes"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for part in efficiency.parts:
        times = {f"{phase}_ms": f"{part.milliseconds[phase]:.6g}" for phase in phases}
        sizes = {"parameters": part.parameters, "state_bytes": part.state_bytes}
        writer.writerow({"layer": part.part, "length": part.length, "batch": part.batch, **sizes, **times})
    return text.getvalue()
