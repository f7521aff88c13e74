"""Many settings, in this process or several, into one results folder."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.mad.models.candidate import Candidate
from hybridtron.mad.scoring.results import RESULTS, Key, Row, key, make_key, opened_for_adding, read_rows
from hybridtron.mad.tasks.protocol import TASKS, Setting, complete, settings, task
from hybridtron.mad.tasks.stored import SPLITS, read_examples
from hybridtron.mad.training.device import require_device
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import Cell, Preset, require_at_least_one
from hybridtron.memory import keep_freed_memory
from hybridtron.processes import TaskFailed, WorkerDied, run_tasks
from hybridtron.reporting.numbers import plural, short_number

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_STEPS = 0.2


@dataclass(frozen=True)
class Unit:
    """What is handed to a process: the cells of a setting, for some seeds, without the pairs that are there already."""

    task: str
    setting: Setting
    seeds: tuple[int, ...]
    done: frozenset[tuple[int, Cell]] = frozenset()

    def num_cells(self, preset: Preset) -> int:
        """Count the cells to train."""
        return len(self.seeds) * len(preset.cells) - len(self.done)

    def tokens_per_epoch(self, preset: Preset) -> float:
        """Count the tokens of an epoch, over all cells to train."""
        return self.setting["seq_len"] * self.setting["num_train_examples"] * self.num_cells(preset)


class Progress(NamedTuple):
    """After a unit: how many are done of how many, all rows of its seeds, and for how long it trained."""

    done: int
    total: int
    unit: Unit
    rows: Sequence[Row]
    seconds: float


class Steps(NamedTuple):
    """How far a unit is, and the best selecting accuracy at the last evaluation, if there was one."""

    done: int
    planned: int
    accuracy: float | None = None


_Report = Row | Steps | float  # of a unit: a row that has ended, how far it is, at its end the seconds it took


class SuiteFailed(Exception):
    """A process that trained ended without a result."""


def require_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds, each once: a number of them, from 0 on, or which; raises UserError where none can be used."""
    if isinstance(seeds, int):
        if seeds < 1:
            raise UserError(f"seeds = {seeds}: expected at least 1")
        return list(range(seeds))
    if not isinstance(seeds, Sequence) or not all(isinstance(seed, int) for seed in seeds):
        raise UserError(f"seeds = {seeds}: expected a whole number of them, or a list of whole numbers")
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32:
        raise UserError(f"seeds = {' '.join(map(str, seeds)) or []}: expected whole numbers from 0 to 2^32 - 1")
    return list(dict.fromkeys(seeds))


def chosen_settings(preset: Preset, tasks: Sequence[str] | None, changes: Setting) -> list[tuple[str, Setting]]:
    """Return the settings to train: the preset's for each task, or with changes the baseline so changed.

    Raises:
        UserError: for no task (None takes all), an unknown task or key, or an impossible setting.
    """
    pairs: list[tuple[str, Setting]] = []
    if tasks is not None and not tasks:
        raise UserError(f"tasks = []: expected at least one of {', '.join(TASKS)}, or None for all")
    for name in tasks or ():
        if name not in TASKS:
            raise UserError(f"tasks = {name}: expected {one_of(name, TASKS)}")
    for name in dict.fromkeys(tasks or TASKS):
        if changes:
            try:
                pairs.append((name, complete(name, changes)))
            except UserError as error:
                hint = "" if tasks else "; choose tasks that have it"
                raise UserError(f"{error}{hint}") from None
        else:
            pairs += [(name, setting) for setting in settings(name)[: 1 if preset.settings == "baseline" else None]]
    return pairs


def run_suite(
    candidate: Candidate,
    preset: Preset,
    chosen: Sequence[tuple[str, Setting]],
    seeds: Sequence[int],
    out: Path,
    *,
    processes: int = 1,
    device: str = "cpu",
    one_pass: bool | None = None,
    on_unit: Callable[[Progress], None] | None = None,
    on_step: Callable[[Unit, Steps], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> list[Row]:
    """Train the cells whose rows the folder lacks; return its rows of this candidate and preset.

    A row is written when its cell has ended. On a CPU every process has one thread, so that results do not depend on
    how many there are. `on_step` is called a few times a second, and when a row has been written.

    Raises:
        UserError: where the folder cannot be used, and where the preset's data lack a setting.
        SuiteFailed: where a process died; what was written stays, and another call goes on from there.
    """
    require_at_least_one(processes=processes)
    require_device(device)
    if preset.data is not None:
        for name, setting in chosen:
            for split in SPLITS:
                read_examples(Path(preset.data), name, setting, split)
    with opened_for_adding(out) as results:
        for warning in results.warnings:
            if on_warning:
                on_warning(warning)
        units = missing_units(candidate, preset, chosen, seeds, results.has)
        finished = count(1)

        def on_report(unit: Unit, report: _Report) -> None:
            if isinstance(report, dict):
                results.add([report])
            elif isinstance(report, Steps):
                if on_step:
                    on_step(unit, report)
            elif on_unit:
                wanted = row_keys(candidate, preset, unit.task, unit.setting, unit.seeds).values()
                on_unit(Progress(next(finished), len(units), unit, results.rows_of(wanted), report))

        if processes > 1:  # the longest first, so that all processes end together
            units.sort(key=lambda unit: unit.tokens_per_epoch(preset), reverse=True)
        work = partial(_train, candidate, preset, device, one_pass)
        try:
            run_tasks(work, units, processes, on_report, single_threaded=device == "cpu")
        except WorkerDied as error:
            raise SuiteFailed(f"a process that trained {error.task.task} ended with code {error.exitcode}") from None
        except TaskFailed as error:
            logger.error("%s", error)
            last = str(error).strip().splitlines()[-1]
            raise SuiteFailed(f"{error.task.task} {dict(error.task.setting)}: {last}") from None
        ours = (candidate.fingerprint(), preset.fingerprint())
        return [row for row in results.rows if (row["fingerprint"], row["protocol"]) == ours]


def missing_units(
    candidate: Candidate,
    preset: Preset,
    chosen: Sequence[tuple[str, Setting]],
    seeds: Sequence[int],
    has: Callable[[Key], bool],
) -> list[Unit]:
    """Return a unit for every setting that lacks rows, with the seeds that lack them and the cells these have.

    `has` tells whether there is a row of a key.
    """
    units = []
    for name, setting in chosen:
        keys = row_keys(candidate, preset, name, setting, seeds)
        lacking = tuple(dict.fromkeys(seed for (seed, _), wanted in keys.items() if not has(wanted)))
        if lacking:
            done = frozenset(pair for pair, wanted in keys.items() if pair[0] in lacking and has(wanted))
            units.append(Unit(name, setting, lacking, done))
    return units


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


def row_keys(
    candidate: Candidate, preset: Preset, task: str, setting: Setting, seeds: Sequence[int]
) -> dict[tuple[int, Cell], Key]:
    """Return the keys of a setting's rows by seed and cell."""
    made = partial(make_key, candidate.fingerprint(), preset.fingerprint(), task, complete(task, setting))
    return {(seed, cell): made(cell.lr, cell.weight_decay, seed) for seed in seeds for cell in preset.cells}


def _train(
    candidate: Candidate,
    preset: Preset,
    device: str,
    one_pass: bool | None,
    unit: Unit,
    report: Callable[[_Report], None],
) -> None:
    """Train a unit; report its rows, every few steps how far it is, and at its end the seconds that it took."""
    began = reported = time.perf_counter()
    steps = Steps(0, 0)

    def on_row(row: Row) -> None:
        report(row)
        report(steps)

    def on_step(done: int, planned: int, accuracy: float | None) -> None:
        nonlocal steps, reported
        steps = Steps(done, planned, accuracy)
        if time.perf_counter() - reported > _SECONDS_BETWEEN_STEPS:
            reported = time.perf_counter()
            report(steps)

    num_threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    # kernels that are compiled at run time take the current GPU
    current = contextlib.nullcontext() if device == "cpu" else torch.cuda.device(torch.device(device))
    try:
        with current:
            train_setting(
                candidate, unit.task, unit.setting, preset, unit.seeds,
                done=unit.done, device=device, one_pass=one_pass, on_row=on_row, on_step=on_step,
            )  # fmt: skip
    finally:
        torch.set_num_threads(num_threads)
    report(time.perf_counter() - began)
