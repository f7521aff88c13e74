"""The MAD laboratory: six synthetic tasks that tell in minutes how an architecture may scale (arXiv 2403.17844)."""

from hybridtron.mad.architecture import Architecture, from_layers, from_model, from_pattern, iso_state
from hybridtron.mad.data import generate
from hybridtron.mad.layers import LAYERS
from hybridtron.mad.presets import PRESETS, Cell, Preset, preset
from hybridtron.mad.report import read_scores, write_report
from hybridtron.mad.results import read_rows
from hybridtron.mad.score import Score
from hybridtron.mad.scoring import scores
from hybridtron.mad.shrink import DEPTH
from hybridtron.mad.suite import SuiteFailed, chosen_settings, run_suite
from hybridtron.mad.tasks import TASKS, settings
from hybridtron.mad.train import train_setting
from hybridtron.mad.transplant import Transplant, transplant

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
    "Transplant",
    "chosen_settings",
    "from_layers",
    "from_model",
    "from_pattern",
    "generate",
    "iso_state",
    "preset",
    "read_rows",
    "read_scores",
    "run_suite",
    "scores",
    "settings",
    "train_setting",
    "transplant",
    "write_report",
]
