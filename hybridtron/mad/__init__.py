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

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.mad.api import score
    from hybridtron.mad.checkpoints import score_checkpoints
    from hybridtron.mad.models.architecture import (
        Architecture,
        from_layers,
        from_model,
        from_pattern,
        with_residual,
    )
    from hybridtron.mad.models.finetune import from_trained
    from hybridtron.mad.models.iso_state import iso_state
    from hybridtron.mad.models.layers import LAYERS
    from hybridtron.mad.models.module import from_module
    from hybridtron.mad.report.write import read_scores, write_report
    from hybridtron.mad.scoring.aggregate import scores
    from hybridtron.mad.scoring.results import read_rows
    from hybridtron.mad.scoring.score import Score
    from hybridtron.mad.tasks.generate import generate
    from hybridtron.mad.tasks.protocol import TASKS, settings
    from hybridtron.mad.training.loop import train_setting
    from hybridtron.mad.training.presets import PRESETS, Cell, Preset, preset
    from hybridtron.mad.training.suite import SuiteFailed, chosen_settings, run_suite

__all__ = [
    "LAYERS",
    "PRESETS",
    "TASKS",
    "Architecture",
    "Cell",
    "Preset",
    "Score",
    "SuiteFailed",
    "chosen_settings",
    "from_layers",
    "from_model",
    "from_module",
    "from_pattern",
    "from_trained",
    "generate",
    "iso_state",
    "preset",
    "read_rows",
    "read_scores",
    "run_suite",
    "score",
    "score_checkpoints",
    "scores",
    "settings",
    "train_setting",
    "with_residual",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(__name__, __file__)
