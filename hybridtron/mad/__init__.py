"""The MAD laboratory: six synthetic tasks that tell in minutes how an architecture may scale (arXiv 2403.17844)."""

from hybridtron.mad.models.architecture import Architecture, from_layers, from_model, from_pattern, iso_state
from hybridtron.mad.models.finetune import TrainedLayers, from_trained
from hybridtron.mad.models.layers import LAYERS
from hybridtron.mad.models.shrink import DEPTH
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
    "DEPTH",
    "LAYERS",
    "PRESETS",
    "TASKS",
    "Architecture",
    "Cell",
    "Preset",
    "Score",
    "SuiteFailed",
    "TrainedLayers",
    "chosen_settings",
    "from_layers",
    "from_model",
    "from_pattern",
    "from_trained",
    "generate",
    "iso_state",
    "preset",
    "read_rows",
    "read_scores",
    "run_suite",
    "scores",
    "settings",
    "train_setting",
    "write_report",
]
