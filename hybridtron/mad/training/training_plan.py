"""What a call has to train, before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hybridtron.errors import UserError
from hybridtron.mad.models.candidate import Candidate
from hybridtron.mad.scoring.results import RESULTS, key, read_rows
from hybridtron.mad.tasks.protocol import Setting, task
from hybridtron.mad.training.presets import Preset
from hybridtron.mad.training.suite import missing_units
from hybridtron.reporting.numbers import plural, short_number


class TrainingPlan(NamedTuple):
    """`steps` and `tokens` are those of the cells that are missing, if none stops early."""

    preset: str
    settings: int
    cells: int
    missing: int
    steps: int
    batch_size: int
    tokens: int

    def __str__(self) -> str:
        text = f"preset {self.preset}, {plural(self.settings, 'setting')}, {plural(self.cells, 'cell')}: "
        if not self.missing:
            return text + "all there already"
        there = f"{self.cells - self.missing:,} there, " if self.missing < self.cells else ""
        return (
            text + f"{there}{self.missing:,} to train, at most {self.steps:,} steps of {self.batch_size} in all, "
            f"{short_number(self.tokens)} tokens"
        )


def plan_training(
    candidate: Candidate, preset: Preset, chosen: Sequence[tuple[str, Setting]], seeds: Sequence[int], folder: Path
) -> TrainingPlan:
    """Count settings, cells, steps and tokens beside the rows that the folder has.

    Raises:
        UserError: where the folder cannot be looked into.
    """
    try:
        there = {key(row) for row in read_rows(folder)[0]} if (folder / RESULTS).is_file() else set()
    except OSError as error:
        raise UserError(f"out {folder}: cannot be read ({error.strerror})") from None
    missing = steps = tokens = 0
    for unit in missing_units(candidate, preset, chosen, seeds, there.__contains__):
        num_examples = int(unit.setting["num_train_examples"])
        planned = unit.num_cells(preset) * preset.steps(num_examples)
        missing += unit.num_cells(preset)
        steps += planned
        tokens += planned * min(preset.batch_size, num_examples) * task(unit.task).sequence_length(unit.setting)
    cells = len(chosen) * len(seeds) * len(preset.cells)
    return TrainingPlan(preset.name, len(chosen), cells, missing, steps, preset.batch_size, tokens)
