"""Many settings, in this process or several, into one results folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from hybridtron.errors import UserError
from hybridtron.mad.presets import Preset
from hybridtron.mad.results import ResultsWriter, Row, opened_for_adding
from hybridtron.mad.subject import Subject
from hybridtron.mad.tasks import TASKS, Setting, complete, settings
from hybridtron.mad.train import train_setting


@dataclass(frozen=True)
class Unit:
    """What is trained in one go and written at once: all cells of a setting, for some seeds."""

    task: str
    setting: Setting
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """After a unit: how many are done of how many, and its rows."""

    done: int
    total: int
    unit: Unit
    rows: Sequence[Row]


class SuiteFailed(Exception):
    """A process that trained ended without a result."""


def chosen_settings(preset: Preset, tasks: Sequence[str], changes: Setting) -> list[tuple[str, Setting]]:
    """The settings to train: the preset's for each task, or with changes from the baseline that one setting each.

    Raises:
        UserError: for an unknown task or key, or an impossible setting.
    """
    pairs: list[tuple[str, Setting]] = []
    for name in dict.fromkeys(tasks or TASKS):
        if changes:
            pairs.append((name, complete(name, changes)))
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
    on_warning: Callable[[str], None] | None = None,
) -> list[Row]:
    """Train what the folder does not have yet; returns its rows of this subject and preset.

    On a CPU every process has one thread, so that results do not depend on how many there are.

    Raises:
        UserError: where the folder cannot be used.
        SuiteFailed: where a process died; what was written stays, and another call goes on from there.
    """
    with opened_for_adding(out) as results:
        for warning in results.warnings:
            if on_warning:
                on_warning(warning)
        units = missing_units(subject, preset, chosen, seeds, results)
        job = _Job(subject, preset, device, together)
        finished = _here(job, units) if processes == 1 else _in_processes(job, units, min(processes, len(units)))
        for done, (unit, rows) in enumerate(finished, start=1):
            results.add(rows)
            if on_unit:
                on_unit(Progress(done, len(units), unit, rows))
        ours = (subject.fingerprint(), preset.fingerprint())
        return [row for row in results.rows if (row["fingerprint"], row["protocol"]) == ours]


def missing_units(
    subject: Subject,
    preset: Preset,
    chosen: Sequence[tuple[str, Setting]],
    seeds: Sequence[int],
    results: ResultsWriter,
) -> list[Unit]:
    """A unit for every setting that lacks rows, with the seeds that do."""
    units = []
    for name, setting in chosen:
        text = json.dumps(complete(name, setting), sort_keys=True)
        lacking = []
        for seed in seeds:
            keys = [
                (subject.fingerprint(), preset.fingerprint(), name, text,
                 f"{cell.lr:g}", f"{cell.weight_decay:g}", str(seed))
                for cell in preset.cells
            ]  # fmt: skip
            if not all(map(results.has, keys)):
                lacking.append(seed)
        if lacking:
            units.append(Unit(name, setting, tuple(lacking)))
    return units


@dataclass(frozen=True)
class _Job:
    subject: Subject
    preset: Preset
    device: str
    together: bool | None

    def rows(self, unit: Unit) -> list[Row]:
        return train_setting(
            self.subject, unit.task, unit.setting, self.preset, unit.seeds, device=self.device, together=self.together
        )


def _here(job: _Job, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
    before = torch.get_num_threads()
    if job.device == "cpu":
        torch.set_num_threads(1)
    try:
        for unit in units:
            yield unit, job.rows(unit)
    finally:
        torch.set_num_threads(before)


def _in_processes(job: _Job, units: Sequence[Unit], count: int) -> Iterator[tuple[Unit, list[Row]]]:
    """Units as they are done. The longest ones are handed out first, so that all processes end together."""
    spawn = multiprocessing.get_context("spawn")
    waiting = sorted(units, key=_cost)
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
            ours.send(busy[ours])
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                try:
                    answer = ready.recv()
                except EOFError:
                    workers[ready].join()
                    code = workers[ready].exitcode
                    raise SuiteFailed(f"a process that trained {busy[ready].task} ended with code {code}") from None
                unit = busy.pop(ready)
                if isinstance(answer, str):
                    raise SuiteFailed(f"{unit.task} {dict(unit.setting)}: {answer}")
                if waiting:
                    busy[ready] = waiting.pop()
                    ready.send(busy[ready])
                yield unit, answer
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


def _cost(unit: Unit) -> float:
    return float(unit.setting["seq_len"]) * float(unit.setting["num_train_examples"]) * len(unit.seeds)


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
            answer: list[Row] | str = job.rows(unit)
        except KeyboardInterrupt:
            return
        except UserError as error:
            answer = str(error)
        except Exception:
            print(traceback.format_exc(), file=sys.stderr)
            answer = traceback.format_exc().strip().splitlines()[-1]
        connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
