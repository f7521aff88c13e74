"""An ablation as one self-contained HTML page, with its numbers and pictures beside it."""

from __future__ import annotations

from pathlib import Path

from hybridtron.ablations.report import tables
from hybridtron.ablations.report.plots import draw
from hybridtron.ablations.results import Ablation, dump_json, to_csv
from hybridtron.config.load import dump
from hybridtron.files import replace_file
from hybridtron.reporting.page import render


def write_page(ablation: Ablation, folder: Path) -> Path:
    """Write report.html, results.csv, result.json and the pictures to the study's folder; return the page."""
    images = draw(ablation)
    for name, png in images.items():
        replace_file(folder / name, png)
    replace_file(folder / "results.csv", to_csv(ablation.rows))
    replace_file(folder / "result.json", dump_json(ablation))
    page = folder / "report.html"
    content = {"tables": tables, "images": images, "settings": dump(ablation.plan.config)}
    replace_file(page, render(__package__, "ablation.html.j2", ablation=ablation, **content))
    return page
