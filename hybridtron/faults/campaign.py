"""A campaign: sessions of faults, each compared with an undisturbed run."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridtron.config.load import dump
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.faults import damage, outcome, processes
from hybridtron.faults.agent import write_plan
from hybridtron.faults.plan import KINDS, LAUNCHED, LAYOUTS, SAVE_EVERY, WARM, Session, draw_sessions

if TYPE_CHECKING:
    from hybridtron.training.config import RunConfig

logger = logging.getLogger(__name__)

BAD_INPUT = 2  # exit code
WARM_LIMIT = 180.0  # seconds of an attempt of forked ranks
LAUNCHED_LIMIT = 240.0  # seconds without any progress of a launched job
PER_SESSION = {WARM: 8, LAUNCHED: 4}
WORDS = ("the", "a", "model", "layer", "state", "of", "attention", "scan", "and", "is", "in", "token")
OWN_KEYS = ("folder", "data.train", "train.steps", "parallel", "checkpoint.save_every", "checkpoint.save_every_minutes")
MODEL: dict[str, Any] = {
    "hidden_size": 16,
    "blocks": {
        "mamba": {"type": "mamba2", "head_dim": 8, "state_dim": 4, "chunk_size": 8},
        "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 32},
    },
    "pattern": "mamba mlp attn mlp",
}


@dataclass
class Campaign:
    """Runs sessions in a folder of its own. `echo` is called with a line after each."""

    folder: Path
    echo: Callable[[str], None] = lambda line: None
    overrides: Sequence[str] = ()
    references: dict[tuple[Any, ...], Path] = field(default_factory=dict)

    def run(self, session: Session) -> list[outcome.Result]:
        """Run a session to its end; return the result of each fault."""
        place = self.folder / f"session_{session.number:03d}"
        place.mkdir(parents=True)
        mounted = session.needs_full_disk and damage.mount_small_disk(place / "disk")
        if session.needs_full_disk and not mounted:
            raise UserError("kinds: disk_full: a small file system cannot be mounted here; expected other kinds")
        try:
            results = self._run_in(place, session)
        finally:
            damage.undo(place / "disk" / "run")
            if mounted:
                shutil.copytree(place / "disk", place / "kept", symlinks=True)
                damage.unmount(place / "disk")
        wrong = [result for result in results if result.outcome == outcome.WRONG]
        self.echo(f"session {session.number} ({session.way}, {session.processes} processes): "
                  f"{sum(result.outcome != outcome.NOT_FIRED for result in results)} faults, {len(wrong)} WRONG"
                  + "".join(f"\n  {result.kind} (rank {result.rank}, step {result.step}): {result.problem}"
                            for result in wrong))  # fmt: skip
        if not wrong:
            shutil.rmtree(place, ignore_errors=True)
        return results

    def _run_in(self, place: Path, session: Session) -> list[outcome.Result]:
        reference = self._reference(session)
        run, plan = place / "disk" / "run", place / "plan.json"
        config = self._write_config(place, session, run)
        write_plan(plan, run, session.faults)
        ends, problem = self._attempts(session, config, run, plan)
        final = run / f"step_{session.steps:08d}"
        if problem is None:
            problem = outcome.differences(reference, final)
        logs = [*place.glob("logs/rank_00000.log"), *run.glob("logs/rank_00000.log")]
        log = "".join(file.read_text(errors="replace") for file in logs)
        return outcome.results_of(session, plan, run, log, ends, problem)

    def _attempts(self, session: Session, config: Path, run: Path, plan: Path) -> tuple[dict[int, float], str | None]:
        """Start the run until it has finished; return when each attempt ended, and what went wrong."""
        ends: dict[int, float] = {}
        for attempt in numbers(1):
            before = len(list((plan.parent / "fired").iterdir()))
            if session.way == WARM:
                ended = processes.run_forked(config, plan, session.processes, attempt, WARM_LIMIT)
                number = attempt
            else:
                ended = processes.run_launched(config, run, plan, session.processes, LAUNCHED_LIMIT)
                number = len(list((run / "launch").glob("attempt_*")))
            ends[number] = ended.time
            damage.undo(run)
            if ended.code is None:
                return ends, f"attempt {number} hung and was ended at the time limit"
            if (run / f"step_{session.steps:08d}").is_dir() and (run / "summary.json").is_file():
                return ends, None if ended.code == 0 else f"ended with exit code {ended.code} after the last step"
            is_refused = ended.code == BAD_INPUT and damage.restore_copies(run)
            if not is_refused and len(list((plan.parent / "fired").iterdir())) == before:
                return ends, f"attempt {number} ended with exit code {ended.code}, and no fault explains that"
        raise AssertionError

    def _reference(self, session: Session) -> Path:
        """Return the last checkpoint of an undisturbed run of the same length, layout and non-finite gradients."""
        key = (session.processes, session.layout, session.steps, session.non_finite)
        if key not in self.references:
            place = self.folder / f"reference_{len(self.references):03d}"
            run, plan = place / "run", place / "plan.json"
            config = self._write_config(place, session, run)
            faults = tuple(fault for fault in session.faults if fault.kind == "non_finite")
            write_plan(plan, run, faults)
            ended = processes.run_forked(config, plan, session.processes, 1, WARM_LIMIT)
            if ended.code != 0:
                log = (place / "logs" / "rank_00000.log").read_text(errors="replace")
                raise RuntimeError(f"the undisturbed run ended with exit code {ended.code}: {log[-2000:]}")
            self.references[key] = run / f"step_{session.steps:08d}"
        return self.references[key]

    def _write_config(self, place: Path, session: Session, run: Path) -> Path:
        """Write the config of a session's run."""
        tokens = self._tokens()
        run.parent.mkdir(parents=True, exist_ok=True)
        file = place / "config.yaml"
        file.write_text(dump(_config_of(run, tokens, session.steps, [*session.layout, *self.overrides])))
        return file

    def _tokens(self) -> Path:
        """Return the prefix of the training tokens, drawn from a few words at first."""
        tokens = self.folder / "tokens"
        if not tokens.exists():
            from hybridtron.data.preprocessing.corpus import prepare
            from hybridtron.data.preprocessing.sources import find_sources

            text = self.folder / "text"
            text.mkdir(parents=True)
            draw = np.random.default_rng(0)
            for i in range(10):
                (text / f"{i}.txt").write_text(" ".join(draw.choice(WORDS, size=200)) + "\n")
            prepare(find_sources([text]), tokens, tokenizer="byte", valid_fraction=0.2)
        return tokens / "train"


def _config_of(run: Path, tokens: Path, steps: int, overrides: Sequence[str]) -> RunConfig:
    """Return the config of a run. Raises UserError for overrides that do not fit it."""
    from hybridtron.api.configs import read_training_config

    config: dict[str, Any] = {
        "name": "faults",
        "seed": 1,
        "folder": str(run),
        "model": MODEL,
        "data": {"tokenizer": "byte", "seq_len": 16, "train": str(tokens)},
        "train": {"steps": steps, "global_batch_size": 4, "micro_batch_size": 2, "log_every": 1,
                  "max_skipped_steps": 10},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup_steps": 4},
        "checkpoint": {"save_every": SAVE_EVERY, "keep_last": 4},
    }  # fmt: skip
    return read_training_config(config, *overrides)


def _require_overrides(folder: Path, overrides: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise UserError for overrides of what a session sets, and for those that do not fit a run."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in OWN_KEYS):
            raise UserError(f"{key}: is set by each session; expected other keys, such as checkpoint.verify=sampled")
    for layout in {layout for size in sizes for layout in LAYOUTS[size]}:
        _config_of(folder / "run", folder / "tokens", 100, [*layout, *overrides])


def _require_possible(kinds: Sequence[str] | None, count: int, launched: int, sizes: Sequence[int]) -> None:
    """Raise UserError for a kind that there is not, or that no run of the campaign can have."""
    if kinds is None:
        return
    if not kinds:
        raise UserError(f"kinds = []: expected at least one of {', '.join(KINDS)}, or None for all")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"kinds: {kind}: expected {one_of(kind, KINDS)}")
        if not launched and WARM not in KINDS[kind].ways:
            raise UserError(f"launched = 0: expected at least 1, as {kind} needs runs of the launcher")
        if launched == count and LAUNCHED not in KINDS[kind].ways:
            raise UserError(f"launched = {launched}: expected less than `count`, {count}, as {kind} needs forked ranks")
        if KINDS[kind].smallest > max(sizes):
            raise UserError(f"processes = {max(sizes)}: expected at least {KINDS[kind].smallest}, which {kind} needs")
    if 0 < launched < count and not any(LAUNCHED in KINDS[kind].ways for kind in kinds):
        raise UserError(f"launched = {launched}: expected 0, as {', '.join(kinds)} needs forked ranks")
    if launched < count and not any(WARM in KINDS[kind].ways for kind in kinds):
        raise UserError(
            f"launched = {launched}: expected `count`, {count}, as {', '.join(kinds)} needs runs of the launcher"
        )


def _kinds_here(folder: Path) -> list[str]:
    """Return all kinds that this machine allows."""
    trial = folder / "trial"
    allowed = damage.mount_small_disk(trial)
    if allowed:
        damage.unmount(trial)
    shutil.rmtree(trial, ignore_errors=True)
    return [kind for kind in KINDS if allowed or kind != "disk_full"]


def run_campaign(
    folder: Path,
    kinds: Sequence[str] | None = None,
    count: int = 300,
    launched: int = 60,
    seed: int = 0,
    sizes: Sequence[int] = (1, 2),
    overrides: Sequence[str] = (),
    echo: Callable[[str], None] = lambda line: None,
) -> Iterator[outcome.Result]:
    """Yield the result of each fault of a campaign.

    Args:
        folder: a new folder for the runs; those of sessions in which something was wrong stay.
        kinds: keys of KINDS; by default all that this machine allows.
        count: faults in all.
        launched: how many of these hit runs of the local launcher; the others hit ranks forked from this process.
        seed: of the campaign; it decides the order, ranks, moments and places.
        sizes: processes of a run; sessions take them in turn.
        overrides: `key=value` of the runs' config, such as checkpoint.asynchronous=false.
        echo: called with a line after each session.

    Raises:
        UserError: for a kind or size that there is not, or that no run would have, for overrides that do not fit, or
            where the folder exists.
    """
    for size in sizes:
        if size not in LAYOUTS:
            raise UserError(f"processes = {size}: expected one of {', '.join(map(str, LAYOUTS))}")
    if count < 1:
        raise UserError(f"count = {count}: expected at least 1")
    if not 0 <= launched <= count:
        raise UserError(f"launched = {launched}: expected 0 to `count`, {count}")
    if folder.exists():
        raise UserError(f"out = {folder}: exists; expected a new folder")
    _require_possible(kinds, count, launched, sizes)
    _require_overrides(folder.absolute(), overrides, sizes)
    folder.mkdir(parents=True)
    found = kinds or _kinds_here(folder)
    campaign = Campaign(folder.absolute(), echo, overrides)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    first = 0
    with processes.everything_imported(), (folder / "results.jsonl").open("a") as rows:
        for way, share in ((WARM, count - launched), (LAUNCHED, launched)):
            usable = [kind for kind in found if way in KINDS[kind].ways]
            for session in draw_sessions(way, usable, share, sizes, seed, PER_SESSION[way], first):
                first = session.number + 1
                for result in campaign.run(session):
                    rows.write(json.dumps(outcome.as_row(result)) + "\n")
                    rows.flush()
                    yield result
