"""A search that is driven from outside: patterns are asked for, and their scores told.

Both are rows of the same record that workers write, so that they work beside any number of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridtron.composer.nas.budget import WORDS, admit_seeds, planned
from hybridtron.composer.nas.progress import OUTSIDE, Progress, Unit
from hybridtron.composer.nas.store import Row, Store
from hybridtron.composer.nas.worker import Search, current_progress, named, next_unit
from hybridtron.composer.space.layouts import letters_of, read_layers
from hybridtron.composer.space.space import Pattern as Indices
from hybridtron.composer.space.violations import violations
from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError
from hybridtron.files import read_plain
from hybridtron.pattern import Pattern, PatternError

HOLD_HOURS = 24.0  # for which what was asked for is left to whoever asked
SHOWN = 3  # results that a refusal names
LARGEST = 1e100  # size of a number that may be told: clusters and noise are of squares, which must be finite too


@dataclass(frozen=True)
class Asked:
    """A pattern to evaluate with one seed; `letters` where every block has one."""

    id: str
    layers: tuple[str, ...]
    letters: str | None
    seed: int

    @property
    def pattern(self) -> str:
        return str(Pattern(self.layers))

    def as_json(self) -> dict[str, Any]:
        """Return the proposal for programs."""
        return {"id": self.id, "pattern": self.pattern, "letters": self.letters, "layers": list(self.layers),
                "seed": self.seed}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """How many scores were recorded, how many were there already, and where the search is then."""

    recorded: int
    repeated: int
    progress: Progress

    def as_json(self) -> dict[str, Any]:
        """Return the counts for programs."""
        step = self.progress.steps[-1]
        return {
            "recorded": self.recorded,
            "repeated": self.repeated,
            "evaluated": len(step.finished),
            "failed": len(step.failed),
            "evaluations": step.budget,
            "complete": self.progress.is_complete,
        }


def ask(search: Search, store: Store, count: int = 1, hold_hours: float = HOLD_HOURS) -> list[Asked]:
    """Take at most `count` units of a search to evaluate elsewhere; fewer where others have the rest, or none is left.

    Workers, and whoever asks later, leave them alone for `hold_hours`, or until their scores are told.
    """
    if count < 1:
        raise UserError(f"count = {count}: expected at least 1")
    if not 0 <= 3600 * hold_hours < math.inf:
        raise UserError(f"hold_hours = {hold_hours}: expected a finite number, at least 0")
    found: list[Asked] = []
    with store.locked() as rows:
        progress, unit = next_unit(search, store, rows)
        while unit is not None:
            key, layers = unit_id(search, unit), search.space.names(unit[0])
            found.append(Asked(key, layers, letters_of(layers, search.config.space), unit[1]))
            until = round(time.time() + 3600 * hold_hours, 3)
            store.append(
                {"row": "claim", **named(search, unit), "worker": f"ask-{key}", "id": key, "until": until}
            )  # fmt: skip
            if len(found) == count or not hold_hours:  # without a hold it is open again at once
                break
            progress.take(unit, f"ask-{key}", until)
            progress, unit = next_unit(search, store, rows, progress)
    return found


def unit_id(search: Search, unit: Unit) -> str:
    """Return eight digits that name a pattern with a seed, the same whenever it is asked for."""
    return hashlib.sha256(json.dumps(named(search, unit), sort_keys=True).encode()).hexdigest()[:8]


def tell(search: Search, store: Store, results: Iterable[Mapping[str, Any]], unasked: bool = False) -> Told:
    """Record scores from outside: all of them, or none where one is refused.

    A result has `id` or `pattern`, in any dialect, with `seed` where the search has several, and `score`, larger being
    better. One that is null or not finite is recorded as failed, with `error` as its reason. `test_score`, on data that
    selects nothing, and `seconds` may follow, which a budget of hours needs; a pattern that has a score may be told its
    test score later, alone. With `unasked`, patterns that nobody proposed become proposals; else they are refused, as
    are scores that differ from one that is there, and patterns whose other seeds the budget does not allow.

    Raises UserError that names the refused results with their reasons.
    """
    with store.locked() as rows:
        progress = search.progress(rows)
        admitted = admit_seeds(search.config, search.evaluator, progress, rows)
        ids = {row["id"]: _unit(search, row) for row in rows if row["row"] == "claim" and "id" in row}
        new: dict[Unit, Row] = {}
        proposals: dict[Indices, None] = {}
        refused, repeated, total = [], 0, 0
        for number, result in enumerate(results, start=1):
            total = number
            try:
                unit, is_proposed = _addressed(search, progress, ids, result, unasked)
                known = new.get(unit) or progress.results.get(unit)
                row = _measured(result, known)
                if known is None and "seconds" not in row and search.config.budget and search.config.budget.hours:
                    raise UserError(
                        "has no seconds; expected those of the evaluation, of which budget.hours is a limit"
                    )
            except UserError as error:
                name = result.get("id") or result.get("pattern") if isinstance(result, Mapping) else result
                refused.append(f"result {number} ({name}): {error}")
                continue
            if known is None or ("test_score" in row and "test_score" not in known):
                new[unit] = {**new.get(unit, {}), **row}
                if not is_proposed:
                    proposals[unit[0]] = None
            else:
                repeated += 1
        if refused:
            more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
            raise UserError(f"{len(refused)} of {total} results are refused, and none recorded: "
                            f"{'; '.join(refused[:SHOWN])}{more}")  # fmt: skip
        _require_budget(search, progress, [*proposals], new)
        added: list[Row] = [admitted] if admitted else []
        if proposals:
            number = progress.steps[-1].number
            texts = [" ".join(search.space.names(pattern)) for pattern in proposals]
            added.append({"row": "propose", "step": number, "patterns": texts, "engine": OUTSIDE})
        added += [{**row, "row": "result", **named(search, unit), "worker": OUTSIDE} for unit, row in new.items()]
        store.append(*added)
        return Told(len(new), repeated, current_progress(search, store, rows))


def _require_budget(search: Search, progress: Progress, patterns: Sequence[Indices], told: Mapping[Unit, Row]) -> None:
    """Raise UserError where the budget does not allow the seeds that were not told of patterns of one's own.

    One that was told with all seeds is not evaluated here, and needs no budget.
    """
    config, step, results = search.config, progress.steps[-1], {**progress.results, **told}
    open_ones = [p for p in patterns if any((p, seed) not in results for seed in config.seeds)]
    if not open_ones or not config.budget:
        return
    steps = [*progress.steps[:-1], replace(step, proposals=[*step.proposals, *patterns])]
    needed = planned(config, search.evaluator, replace(progress, steps=steps, results=results))
    for key, limit in config.budget.limits.items():
        if needed[key] > limit:
            more = f" (and {len(open_ones) - 1} more like it)" if len(open_ones) > 1 else ""
            raise UserError(
                f"{Pattern(search.space.names(open_ones[0]))}{more}: the budget does not allow its other seeds: "
                f"{needed[key]:g} of {limit:g} {WORDS[key]} would be spent with them; expected scores for all of "
                "seeds, or a larger budget; nothing is recorded"
            )


def _addressed(
    search: Search, progress: Progress, ids: Mapping[str, Unit], result: Mapping[str, Any], unasked: bool
) -> tuple[Unit, bool]:
    """Return the unit that a result is of, and whether it was proposed."""
    if not isinstance(result, Mapping):
        raise UserError("expected a JSON object with id or pattern, and score")
    if "id" in result:
        if not isinstance(result["id"], str) or result["id"] not in ids:
            close = nearest(str(result["id"]), ids)
            raise UserError("unknown id; expected one of an ask" + (f" (nearest: {close})" if close else ""))
        return ids[result["id"]], True
    text = result.get("pattern")
    if not isinstance(text, str):
        raise UserError("has neither id nor pattern")
    try:
        pattern = search.space.indices(read_layers(text, search.config.space))
    except PatternError as error:
        raise UserError(str(error).splitlines()[0].removeprefix("pattern: ")) from None
    is_proposed = any(pattern in step.proposals for step in progress.steps)
    is_candidate = pattern in (progress.candidates or {})
    if not is_proposed and not is_candidate:
        if reasons := violations(progress.steps[-1].space, pattern):
            raise UserError("; ".join(reasons))
        if not unasked:
            raise UserError("was not proposed; expected a pattern of an ask, or unasked=True beside it")
    seeds = [*search.config.seeds, *(progress.fresh_seeds if is_candidate else ())]
    seed = result.get("seed", seeds[0] if len(seeds) == 1 else None)
    if isinstance(seed, bool) or seed not in seeds:
        raise UserError(f"seed = {seed}: expected one of {', '.join(map(str, seeds))}")
    return (pattern, seeds[seeds.index(seed)]), is_proposed or is_candidate  # a whole number, also of 0.0


def _measured(result: Mapping[str, Any], known: Row | None) -> Row:
    """Return the score of a result, or its failure, as keys of a row; `known` is what is there of the same unit.

    Raises UserError for what is no number or above LARGEST, and for a score that is there with another value.
    """
    given = {key: _number(key, result[key]) for key in ("score", "test_score", "seconds") if key in result}
    finite = {key: value for key, value in given.items() if value is not None and math.isfinite(value)}
    for key, value in finite.items():
        if abs(value) > LARGEST:
            raise UserError(f"{key} = {value:g}: expected at most {LARGEST:g} in size, or null for a failure")
    if finite.get("seconds", 0) < 0:
        raise UserError(f"seconds = {finite['seconds']:g}: expected at least 0")
    if "test_score" in finite and known is not None and "error" not in result:
        given.setdefault("score", known["score"])
        finite = {"score": known["score"], **finite}
    if "score" not in given and "error" not in result:
        raise UserError("has no score; expected a number, or error with the reason")
    for key, there in (known or {}).items():
        if (key == "score" or (key == "test_score" and key in finite)) and there != finite.get(key):
            raise UserError(f"has the {key} {there} already, which is never changed")
    if finite.get("score") is not None:
        return finite
    score = given.get("score")
    reason = result.get("error") or ("no score was told" if score is None else f"the score told was {score}")
    return {**finite, "score": None, "error": str(reason)}


def _number(key: str, value: object) -> float | None:
    """Return a number as a float, infinite where it is too large for one; None for None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{key} = {value!r}: expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unit(search: Search, row: Row) -> Unit:
    return search.space.indices(row["pattern"].split()), row["seed"]


def read_results(path: Path) -> list[Any]:
    """Read results from a file: a JSON list, an object with a list `results`, one result, or one result a line.

    Raises UserError where it is none of these.
    """
    try:
        text = read_plain(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise UserError(f"{path}: {reason}; expected a JSON file of results") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is no JSON; expected a list of results, or one a line") from None
    if isinstance(content, dict):
        content = content.get("results", [content])
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: has no results; expected a JSON list of them")
    return content
