"""Several runs beside each other, and what may be concluded from their losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.monitoring.compare.noise import CURVED, FEWEST, LAST
from hybridtron.monitoring.compare.run import ComparedRun, read_run
from hybridtron.monitoring.compare.settings import Value, differences
from hybridtron.monitoring.queue import queued_jobs
from hybridtron.monitoring.runs import require_run
from hybridtron.reporting.shown import Shown

LOSS, BITS = "held-out loss", "bits per byte"
HELD_OUT_KEYS = ("data.valid", "data.seq_len", "train.eval_sequences", "data.documents")  # decide which tokens count
NOISE = (
    f"Noise is the standard deviation of the last {LAST} held-out losses (at least {FEWEST}) around a straight line "
    f"through them over tokens or, from {CURVED} losses on, around a parabola over log tokens where that fits better. "
    "It is the scatter within one run: another seed usually changes the loss by more."
)


@dataclass(frozen=True)
class Comparison(Shown):
    """Runs in the order in which they were given."""

    runs: list[ComparedRun]

    @cached_property
    def differences(self) -> dict[str, list[Value]]:
        """Return the settings that are not equal in all runs, by dotted key, with the value of each run."""
        runs = self.runs
        return differences([r.settings for r in runs], [r.fingerprints for r in runs], [r.blocks for r in runs])

    @property
    def has_several_tokenizers(self) -> bool:
        """Return whether a token is not the same in all runs."""
        known = [run.fingerprints.get("data.tokenizer") for run in self.runs]
        if None not in known:
            return any(tokenizer != known[0] for tokenizer in known)
        return bool({"data.tokenizer", "model.vocab_size"} & self.differences.keys())

    @property
    def measure(self) -> str:
        """Return what runs are compared by: LOSS, or BITS where their tokens differ."""
        return BITS if self.has_several_tokenizers else LOSS

    def scale(self, run: ComparedRun) -> float | None:
        """Return what turns a loss of a run into the measure; None where that is not known."""
        return run.bits_per_nat if self.measure == BITS else 1.0

    def measured(self, run: ComparedRun) -> float | None:
        """Return a run by the measure."""
        return run.bits_per_byte if self.measure == BITS else run.valid_loss

    def noise(self, run: ComparedRun) -> float | None:
        """Return the noise of a run's measure."""
        scale = self.scale(run)
        return None if None in (run.valid_noise, scale) else run.valid_noise * scale  # type: ignore[operator]

    @cached_property
    def best(self) -> ComparedRun | None:
        """Return the run with the lowest measure, where several have one."""
        known = [run for run in self.runs if self.measured(run) is not None]
        return min(known, key=lambda run: self.measured(run) or math.inf) if len(known) > 1 else None

    def above_best(self, run: ComparedRun) -> float | None:
        """Return by how much a run is above the best one."""
        mine, best = self.measured(run), self.measured(self.best) if self.best else None
        return None if mine is None or best is None else mine - best

    def is_within_noise(self, run: ComparedRun) -> bool | None:
        """Return whether a run is above the best one by less than twice the noise of the difference of the two.

        None for the best one, and where the noise of either is not known.
        """
        above, best = self.above_best(run), self.best
        if run is best or best is None or above is None:
            return None
        mine, other = self.noise(run), self.noise(best)
        return None if mine is None or other is None else above < 2 * math.hypot(mine, other)

    @property
    def warnings(self) -> list[str]:
        """Return why numbers of these runs are not comparable as they are."""
        found = []
        if self.has_several_tokenizers:
            found.append(
                "The runs have different tokenizers, so their losses per token are not comparable; they are compared "
                "in bits per byte of held-out text."
            )
            missing = [run.name for run in self.runs if run.valid_loss is not None and run.bits_per_byte is None]
            if missing:
                found.append(
                    f"Bits per byte are not known of {', '.join(missing)}: the bytes of the held-out text are not."
                )
        elif unequal := [key for key in self.differences if key.partition("[")[0] in HELD_OUT_KEYS]:
            found.append(f"Held-out losses are of different tokens: {', '.join(unequal)} is not the same in all runs.")
        tokens = {run.held_out["tokens"][-1] for run in self.runs if run.held_out["tokens"]}
        if len(tokens) > 1:
            found.append("The last held-out losses were measured after different numbers of tokens.")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return runs, differences and verdicts for programs."""
        rows = []
        for run in self.runs:
            verdict = {"above_best": self.above_best(run), "within_noise": self.is_within_noise(run)}
            numbers = run.as_json()
            curves = numbers.pop("curves")
            rows.append({**numbers, **verdict, "curves": curves})
        return {
            "measure": self.measure,
            "best": self.best.name if self.best else None,
            "noise": NOISE,
            "warnings": self.warnings,
            "differences": {
                key: dict(zip([run.name for run in self.runs], values, strict=True))
                for key, values in self.differences.items()
            },
            "runs": rows,
        }


def read_comparison(folders: Iterable[Path]) -> Comparison:
    """Read run folders, each once. Raises UserError for no folder, and for one that is no run."""
    jobs = queued_jobs()
    kept = list({folder.resolve(): folder for folder in folders}.values())
    if not kept:
        raise UserError("runs: none given; expected at least one run folder")
    for folder in kept:
        require_run(folder)
    runs = [read_run(folder, jobs) for folder in kept]
    for run, name in zip(runs, names_apart(runs), strict=True):
        run.name = name
    return Comparison(runs)


def names_apart(runs: Sequence[ComparedRun]) -> list[str]:
    """Return a name for each run: its own, or as much of the end of its path as no other run of that name has."""
    found = []
    for run in runs:
        others = [other.folder.resolve() for other in runs if other.name == run.name and other is not run]
        parts = run.folder.resolve().parts
        length = next(n for n in range(1, len(parts) + 1) if all(other.parts[-n:] != parts[-n:] for other in others))
        found.append("/".join(parts[-length:]) if others else run.name)
    return found
