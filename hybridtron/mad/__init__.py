"""The MAD laboratory: six synthetic tasks that predict in minutes how an architecture scales (arXiv 2403.17844).

api.py           score an architecture
checkpoints.py   score checkpoints, and correlate the scores with their losses
tasks/           the six tasks: settings and examples
models/          architectures from layers, patterns, configs and checkpoints, at proxy width
training/        presets, the stack of models that trains as one, suites of settings
scoring/         results on disk, accuracy, scores, their correlation with losses
report/          tables, pictures and the page
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DEPTH": "models.shrink",
    "LAYERS": "models.layers",
    "PRESETS": "training.presets",
    "TASKS": "tasks.protocol",
    "Architecture": "models.architecture",
    "Cell": "training.presets",
    "Preset": "training.presets",
    "Score": "scoring.score",
    "SuiteFailed": "training.suite",
    "TrainedLayers": "models.finetune",
    "chosen_settings": "training.suite",
    "from_layers": "models.architecture",
    "from_model": "models.architecture",
    "from_pattern": "models.architecture",
    "from_trained": "models.finetune",
    "generate": "tasks.generate",
    "iso_state": "models.architecture",
    "preset": "training.presets",
    "read_rows": "scoring.results",
    "read_scores": "report.write",
    "run_suite": "training.suite",
    "score": "api",
    "score_checkpoints": "checkpoints",
    "scores": "scoring.aggregate",
    "settings": "tasks.protocol",
    "train_setting": "training.loop",
    "write_report": "report.write",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
