"""Where a search is: read from its rows alone, so that every worker sees the same."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, stdev
from typing import Any

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.methodology import num_steps, step_space
from hybridtron.composer.nas.store import EVALUATIONS, Row, Store
from hybridtron.composer.space.space import Pattern, Space
from hybridtron.composer.votes.aggregate import Aggregate
from hybridtron.composer.votes.noise import Noise, pooled_noise
from hybridtron.composer.votes.recorded import read_vote, vote_key
from hybridtron.composer.votes.vote import vote
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

Unit = tuple[Pattern, int]  # a pattern and a seed
_PATTERN, _SEED = (str, "names of blocks"), (int, "a whole number")
KEYS: dict[str, dict[str, tuple[Any, str]]] = {  # kind of row -> its keys, their types in code and in words
    "propose": {"step": (int, "a whole number"), "patterns": (list, "a list of patterns")},
    "confirm": {"patterns": (list, "a list of patterns"), "roles": (list, "a list of words")},
    "claim": {"pattern": _PATTERN, "seed": _SEED, "worker": (str, "the name of a worker")},
    "result": {"pattern": _PATTERN, "seed": _SEED, "score": ((int, float, type(None)), "a number, or null")},
    "seeds": {"of": (list, "a list of whole numbers")},
    "vote": {"pattern": _PATTERN, "step": (int, "a whole number"), "by": (str, "what voted")},
}
OUTSIDE = "outside"  # the worker of scores that were told
NUMBERS = ("until", "seconds", "test_score")  # keys that a row may have


@dataclass
class Step:
    """One step of the methodology, with what was proposed for it. Once it is complete, `found` is what it hands on."""

    number: int
    space: Space
    budget: int
    proposals: list[Pattern] = field(default_factory=list)
    finished: list[Observation] = field(default_factory=list)  # in the order of the proposals
    failed: list[Pattern] = field(default_factory=list)  # had no finite score
    noise: Noise | None = None  # of one score; None where neither seeds nor the config tell it
    aggregate: Aggregate | None = None
    is_recorded: bool = False  # the vote is a row of the record
    found: Pattern | None = None

    @property
    def pending(self) -> list[Pattern]:
        done = {*(o.pattern for o in self.finished), *self.failed}
        return [pattern for pattern in self.proposals if pattern not in done]

    @property
    def is_complete(self) -> bool:
        return len(self.proposals) >= self.budget and not self.pending


@dataclass
class Progress:
    """All steps that have begun; the last may be unfinished."""

    steps: list[Step]
    total_steps: int
    results: dict[Unit, Row]
    claims: dict[Unit, str]  # the last worker to take it
    fresh_seeds: Sequence[int] = ()  # of the confirmation; none without one
    stopped: str | None = None  # why the budget ended the search
    held: dict[Unit, float] = field(default_factory=dict)  # until when, in seconds, who asked keeps a unit
    candidates: dict[Pattern, str] | None = None  # patterns to confirm, the vote first, and why; None if not chosen yet

    @property
    def is_searched(self) -> bool:
        """Return whether every step is complete, so that only a confirmation may be left."""
        return len(self.steps) == self.total_steps and self.steps[-1].is_complete

    @property
    def is_complete(self) -> bool:
        if not self.is_searched or not self.fresh_seeds:
            return self.is_searched
        return self.candidates is not None and all(unit in self.results for unit in self.confirm_units)

    @property
    def lacks_candidates(self) -> bool:
        """Return whether the patterns to confirm are still to be chosen."""
        return bool(self.is_searched and self.fresh_seeds and self.candidates is None and self.steps[-1].aggregate)

    @property
    def confirm_units(self) -> list[Unit]:
        """Return all units of the confirmation, seed by seed, so that pairs are complete as early as can be."""
        return [(pattern, seed) for seed in self.fresh_seeds for pattern in self.candidates or ()]

    @property
    def is_stuck(self) -> bool:
        """Return whether no pattern of the last step has a score, so that there is nothing to hand on."""
        return self.steps[-1].is_complete and not self.steps[-1].finished

    def open_unit(self, seeds: Sequence[int], store: Store) -> Unit | None:
        """Return the first unit to evaluate without a result that no living worker has claimed."""
        wanted = self.confirm_units if self.is_searched else product(self.steps[-1].pending, seeds)
        return next((u for u in wanted if u not in self.results and not self._is_taken(u, store)), None)

    def take(self, unit: Unit, worker: str, until: float) -> None:
        """Leave a unit to whoever asked for it, until a time in seconds."""
        self.claims[unit], self.held[unit] = worker, until

    def _is_taken(self, unit: Unit, store: Store) -> bool:
        """Return whether a living worker has a unit, or whoever asked for it may still tell its score."""
        if unit in self.held:
            return time.time() < self.held[unit]
        return unit in self.claims and store.is_alive(self.claims[unit])


def read_progress(config: SearchConfig, whole: Space, rows: Sequence[Row], listed: Sequence[Pattern] = ()) -> Progress:
    """Read the state of a search of the space `whole` from all rows of its record; `listed` are those of a list.

    What was proposed for a step whose space has changed since, as what the step before hands on has, counts no more;
    its results stay, for patterns that are proposed again. Raises UserError for a row that is damaged, where the config
    lacks seeds that were added, and where a step finds no pattern around what the step before handed on.
    """
    results: dict[Unit, Row] = {}
    claims: dict[Unit, str] = {}
    held: dict[Unit, float] = {}
    stopped: str | None = None
    votes: dict[tuple[int, str], tuple[int, Row]] = {}  # by step and what they follow from: the first, with its line
    proposals: dict[int, list[Pattern]] = {}
    for number, row in enumerate(rows, start=1):
        if damage := _damage(row, whole.blocks):
            raise UserError(f"{config.search_folder / EVALUATIONS}:{number}: damaged line: {damage}")
        if row["row"] == "propose":
            patterns = [whole.indices(text.split()) for text in row["patterns"]]
            proposals.setdefault(row["step"], []).extend(patterns)
        elif row["row"] in ("claim", "result"):
            unit = (whole.indices(row["pattern"].split()), row["seed"])
            if row["row"] == "claim":
                claims[unit] = row["worker"]
                held.pop(unit, None)
                if "until" in row:
                    held[unit] = row["until"]
            else:
                first = results.setdefault(unit, row)
                if "test_score" in row and "test_score" not in first:  # which may be told later
                    results[unit] = {**first, "test_score": row["test_score"], "tested_by": row.get("worker")}
        elif row["row"] == "seeds":
            _require_seeds(config, row["of"])
        elif row["row"] == "vote":
            votes.setdefault((row["step"], _text(row.get("of"))), (number, row))
        elif row["row"] == "stop" and row.get("of") == stop_key(config):
            stopped = row.get("reason")
    total = num_steps(config.methodology, whole.layers)
    steps: list[Step] = []
    while len(steps) < total and (not steps or steps[-1].found is not None):
        found = steps[-1].found if steps else None
        space = step_space(config.methodology, whole, len(steps), found or ())
        proposed = [pattern for pattern in dict.fromkeys(proposals.get(len(steps), [])) if space.allows(pattern)]
        is_list = config.engine.type == "list"
        budget = config.most_evaluations(len({*proposed, *listed}) if is_list else space.size)
        step = Step(len(steps), space, len(proposed) if stopped else budget, proposed)
        _observe(config, step, results)
        if step.finished and step.is_complete:
            _elect(config, step, votes)
        steps.append(step)
    progress = Progress(steps, total, results, claims, config.fresh_seeds, stopped, held)
    if config.confirm and progress.is_searched and steps[-1].aggregate:
        wanted = confirm_key(config, steps[-1])
        for row in rows:
            if row["row"] == "confirm" and row.get("of") == wanted:
                patterns = [whole.indices(text.split()) for text in row["patterns"]]
                progress.candidates = dict(zip(patterns, row["roles"], strict=True))
    return progress


def _require_seeds(config: SearchConfig, added: Sequence[int]) -> None:
    """Raise UserError where a config lacks seeds that were added to its search: it would tell of some scores only."""
    if any(seed not in config.seeds for seed in added):
        raise UserError(
            f"seeds = {config.seeds}: since seeds were added, search folder {config.search_folder} has {list(added)}; "
            "expected these, or more"
        )


def stop_key(config: SearchConfig) -> Row:
    """Return what a stop by the budget follows from: with other limits the search goes on."""
    return {"limits": config.budget.limits if config.budget else {}, "seeds": config.seeds}


def confirm_key(config: SearchConfig, step: Step) -> Row:
    """Return what the patterns to confirm follow from: others are chosen where it has changed."""
    assert config.confirm is not None
    assert step.aggregate is not None
    vote = " ".join(step.space.names(step.aggregate.pattern))
    given = config.confirm.model_dump(include={"top", "baselines"})
    return {**given, "seeds": config.seeds, "evaluated": len(step.finished), "vote": vote}


def _text(key: Any) -> str:
    """Return what a row follows from as text, by which rows are looked up."""
    return json.dumps(key, sort_keys=True)


def _damage(row: Row, blocks: Sequence[str]) -> str | None:
    """Return what is wrong with a row and what was expected; None for nothing."""
    kind = str(row["row"])
    for key, (types, expected) in KEYS.get(kind, {}).items():
        if key not in row:
            return f"a {kind} has no {key}; expected {expected}"
        if not isinstance(row[key], types):
            return f"{key} = {row[key]!r}; expected {expected}"
    if kind not in KEYS:
        return None
    for key in NUMBERS:
        if not isinstance(row.get(key, 0), int | float):
            return f"{key} = {row[key]!r}; expected a number"
    for text in row["patterns"] if "patterns" in KEYS[kind] else [row["pattern"]] if "pattern" in KEYS[kind] else []:
        for word in text.split() if isinstance(text, str) else [text]:
            if word not in blocks:
                return f"block {word!r}; expected {one_of(word, blocks)}"
    return None


def _observe(config: SearchConfig, step: Step, results: dict[Unit, Row]) -> None:
    """Fill in the step's observations and their noise."""
    finite: dict[Pattern, dict[int, float]] = {}
    for pattern in step.proposals:
        scores = {seed: results[pattern, seed]["score"] for seed in config.seeds if (pattern, seed) in results}
        if None in scores.values() and len(scores) == len(config.seeds):
            step.failed.append(pattern)
        elif len(scores) == len(config.seeds):
            finite[pattern] = scores
            error = stdev(scores.values()) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
            step.finished.append(Observation(pattern, fmean(scores.values()), error, len(scores)))
    step.noise = Noise(config.engine.noise, math.inf) if config.engine.noise else pooled_noise(finite)


def _elect(config: SearchConfig, step: Step, votes: Mapping[tuple[int, str], tuple[int, Row]]) -> None:
    """Fill in the result of a complete step: what its vote elected by the record, or else elects now."""
    key = step.number, _text(vote_key(config, step.space, step.finished))
    if key in votes:
        number, row = votes[key]
        try:
            step.aggregate = read_vote(config, step.space, step.finished, step.noise, row)
        except UserError as error:
            raise UserError(f"{config.search_folder / EVALUATIONS}:{number}: damaged line: {error}") from None
        step.is_recorded = True
    else:
        step.aggregate = vote(config.aggregator, step.space, step.finished, step.noise)
    best = max(step.finished, key=lambda o: o.score).pattern
    step.found = best if config.methodology.keep == "best" else step.aggregate.pattern
