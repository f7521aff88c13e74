"""Many settings, in this process or several, into one results folder."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridtron.errors import UserError
from hybridtron.mad.models.subject import Subject
from hybridtron.mad.scoring.results import Key, ResultsWriter, Row, make_key, opened_for_adding
from hybridtron.mad.tasks.protocol import TASKS, Setting, complete, settings
from hybridtron.mad.training.device import require_device
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import Cell, Preset, require_at_least_one

_SECONDS_BETWEEN_STEPS = 0.2


@dataclass(frozen=True)
class Unit:
    """What is handed to a process: the cells of a setting, for some seeds, without the pairs that are there already."""

    task: str
    setting: Setting
    seeds: tuple[int, ...]
    done: frozenset[tuple[int, Cell]] = frozenset()


@dataclass(frozen=True)
class Progress:
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


_Said = Row | Steps | float  # of a unit: a row that has ended, how far it is, at its end the seconds it took


class SuiteFailed(Exception):
    """A process that trained ended without a result."""


def require_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds, each once: a number of them, from 0 on, or which; raises UserError where none can be used."""
    if isinstance(seeds, int):
        if seeds < 1:
            raise UserError(f"seeds = {seeds}: expected at least 1")
        return list(range(seeds))
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32:
        raise UserError(f"seeds {' '.join(map(str, seeds))}: expected numbers from 0 to 2^32 - 1")
    return list(dict.fromkeys(seeds))


def chosen_settings(preset: Preset, tasks: Sequence[str], changes: Setting) -> list[tuple[str, Setting]]:
    """The settings to train: the preset's for each task, or with changes from the baseline that one setting each.

    Raises:
        UserError: for an unknown task or key, or an impossible setting.
    """
    pairs: list[tuple[str, Setting]] = []
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
    subject: Subject,
    preset: Preset,
    chosen: Sequence[tuple[str, Setting]],
    seeds: Sequence[int],
    out: Path,
    *,
    processes: int = 1,
    device: str = "cpu",
    together: bool | None = None,
    on_unit: Callable[[Progress], None] | None = None,
    on_step: Callable[[Unit, Steps], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> list[Row]:
    """Train what the folder does not have yet; returns its rows of this subject and preset.

    A row is written when its cell has ended. On a CPU every process has one thread, so that results do not depend on
    how many there are. `on_step` is called a few times a second, and when a row has been written.

    Raises:
        UserError: where the folder cannot be used.
        SuiteFailed: where a process died; what was written stays, and another call goes on from there.
    """
    require_at_least_one(processes=processes)
    require_device(device)
    with opened_for_adding(out) as results:
        for warning in results.warnings:
            if on_warning:
                on_warning(warning)
        units = missing_units(subject, preset, chosen, seeds, results)
        job = _Job(subject, preset, device, together)
        finished = 0

        def hear(unit: Unit, said: _Said) -> None:
            nonlocal finished
            if isinstance(said, dict):
                results.add([said])
            elif isinstance(said, Steps):
                if on_step:
                    on_step(unit, said)
            else:
                finished += 1
                if on_unit:
                    wanted = row_keys(subject, preset, unit.task, unit.setting, unit.seeds).values()
                    on_unit(Progress(finished, len(units), unit, results.rows_of(wanted), said))

        if processes == 1:
            _here(job, units, hear)
        else:
            _in_processes(job, units, min(processes, len(units)), hear)
        ours = (subject.fingerprint(), preset.fingerprint())
        return [row for row in results.rows if (row["fingerprint"], row["protocol"]) == ours]


def missing_units(
    subject: Subject,
    preset: Preset,
    chosen: Sequence[tuple[str, Setting]],
    seeds: Sequence[int],
    results: ResultsWriter,
) -> list[Unit]:
    """A unit for every setting that lacks rows, with the seeds that do and the cells that they do have."""
    units = []
    for name, setting in chosen:
        keys = row_keys(subject, preset, name, setting, seeds)
        lacking = tuple(dict.fromkeys(seed for (seed, _), wanted in keys.items() if not results.has(wanted)))
        if lacking:
            done = frozenset(pair for pair, wanted in keys.items() if pair[0] in lacking and results.has(wanted))
            units.append(Unit(name, setting, lacking, done))
    return units


def row_keys(
    subject: Subject, preset: Preset, task: str, setting: Setting, seeds: Sequence[int]
) -> dict[tuple[int, Cell], Key]:
    """The keys of a setting's rows by seed and cell."""
    made = partial(make_key, subject.fingerprint(), preset.fingerprint(), task, complete(task, setting))
    return {(seed, cell): made(cell.lr, cell.weight_decay, seed) for seed in seeds for cell in preset.cells}


@dataclass(frozen=True)
class _Job:
    subject: Subject
    preset: Preset
    device: str
    together: bool | None

    def train(self, unit: Unit, say: Callable[[_Said], None]) -> None:
        """Says every row, now and then how far it is, and in the end the seconds that it took."""
        began = told = time.perf_counter()
        steps = Steps(0, 0)

        def on_row(row: Row) -> None:
            say(row)
            say(steps)

        def on_step(done: int, planned: int, accuracy: float | None) -> None:
            nonlocal steps, told
            steps = Steps(done, planned, accuracy)
            if time.perf_counter() - told > _SECONDS_BETWEEN_STEPS:
                told = time.perf_counter()
                say(steps)

        train_setting(
            self.subject, unit.task, unit.setting, self.preset, unit.seeds,
            done=unit.done, device=self.device, together=self.together, on_row=on_row, on_step=on_step,
        )  # fmt: skip
        say(time.perf_counter() - began)


def _here(job: _Job, units: Sequence[Unit], hear: Callable[[Unit, _Said], None]) -> None:
    before = torch.get_num_threads()
    if job.device == "cpu":
        torch.set_num_threads(1)
    try:
        for unit in units:
            job.train(unit, partial(hear, unit))
    finally:
        torch.set_num_threads(before)


def _in_processes(job: _Job, units: Sequence[Unit], count: int, hear: Callable[[Unit, _Said], None]) -> None:
    """The longest units are handed out first, so that all processes end together."""
    spawn = multiprocessing.get_context("spawn")
    waiting = sorted(units, key=partial(_cost, job.preset))
    workers: dict[Connection, Any] = {}
    busy: dict[Connection, Unit] = {}
    # Read by the libraries when a process starts.
    threads = {} if job.device != "cpu" else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)
    try:
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            busy[ours] = waiting.pop()
            with contextlib.suppress(ConnectionError):
                ours.send(busy[ours])
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                unit = busy[ready]
                try:
                    said = ready.recv()
                except (EOFError, ConnectionError):
                    workers[ready].join()
                    code = workers[ready].exitcode
                    raise SuiteFailed(f"a process that trained {unit.task} ended with code {code}") from None
                if isinstance(said, str):
                    raise SuiteFailed(f"{unit.task} {dict(unit.setting)}: {said}")
                if isinstance(said, float):
                    del busy[ready]
                    if waiting:
                        busy[ready] = waiting.pop()
                        with contextlib.suppress(ConnectionError):  # of a process that died, which recv tells
                            ready.send(busy[ready])
                hear(unit, said)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _cost(preset: Preset, unit: Unit) -> float:
    cells = len(unit.seeds) * len(preset.cells) - len(unit.done)
    return float(unit.setting["seq_len"]) * float(unit.setting["num_train_examples"]) * cells


def _serve(connection: Connection, job: _Job) -> None:
    """Train units until there are no more, or whoever asked for them is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if job.device == "cpu":
        torch.set_num_threads(1)
    while True:
        try:
            unit = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            job.train(unit, connection.send)
        except (BrokenPipeError, KeyboardInterrupt):
            return
        except UserError as error:
            connection.send(str(error))
        except Exception:
            print(traceback.format_exc(), file=sys.stderr)
            connection.send(traceback.format_exc().strip().splitlines()[-1])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
