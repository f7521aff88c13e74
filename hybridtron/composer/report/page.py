"""A search as one self-contained HTML page, with its numbers and pictures beside it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hybridtron.composer.report import tables
from hybridtron.composer.report.evaluations import read_evaluations
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.plots import draw, votes_name
from hybridtron.config.load import dump
from hybridtron.files import json_text, replace_file
from hybridtron.reporting.page import render

TARGETS = {  # models to grow a pattern to, by the blocks that they have
    ("attn", "mlp"): "configs/models/llama3_2.yaml size=1b",
    ("attn", "mamba", "mlp"): "configs/models/nemotron_h.yaml size=1b",
}
UNKNOWN_TARGET = "TARGET.yaml"


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write report.html, result.json and the pictures to the search's folder; return the page."""
    evaluations = read_evaluations(outcome, folder)
    images = draw(outcome, evaluations.engines)
    for name, png in images.items():
        replace_file(folder / name, png)
    replace_file(folder / "result.json", json_text(outcome.as_json()) + "\n")
    written = folder / "report.html"
    settings, following = dump(outcome.search.config), _next_command(outcome)
    content = {"settings": settings, "next": following, "tables": tables, "votes_name": votes_name}
    shown = render(__package__, "search.html.j2", outcome=outcome, evaluations=evaluations, images=images, **content)
    replace_file(written, shown)
    return written


def _next_command(outcome: Outcome) -> dict[str, Any]:
    """Return the command that makes a training config of the result, its target and the blocks that this has."""
    config, pattern = outcome.search.config, outcome.aggregate.pattern
    blocks = sorted(set(outcome.step.space.names(pattern)))
    if config.cost and config.cost.model:
        target = shlex.join([config.cost.model, *config.cost.overrides])
    else:
        target = next((model for names, model in TARGETS.items() if {*blocks} <= {*names}), UNKNOWN_TARGET)
    quoted = shlex.quote(outcome.text(pattern))
    command = f"hybridtron scale {quoted} --method stack --target {target} --out {config.name}-grown.yaml"
    return {"command": command, "target": target, "is_known": target != UNKNOWN_TARGET, "blocks": blocks}
