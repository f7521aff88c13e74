"""`hybridtron search`: workers that propose, claim, evaluate and record until the search is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.composer.costs.cost import Cost, limited, read_costs
from hybridtron.composer.costs.pareto import scalarised
from hybridtron.composer.engines.bayesian import Bayesian, require_botorch
from hybridtron.composer.engines.discrete import History, Observation, new_patterns
from hybridtron.composer.engines.listed import Listed
from hybridtron.composer.evaluation.evaluators import TEST, Evaluator, make_evaluator
from hybridtron.composer.nas.attempt import attempt
from hybridtron.composer.nas.budget import admit_seeds, affordable, stop_row
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress, Step, Unit, read_progress
from hybridtron.composer.nas.store import WAIT_SECONDS, Row, Store, read_header
from hybridtron.composer.space.layouts import Layout, read_layouts
from hybridtron.composer.space.space import Pattern, Space
from hybridtron.composer.votes.confirm import choose_candidates
from hybridtron.composer.votes.noise import with_noise
from hybridtron.composer.votes.recorded import vote_row
from hybridtron.errors import UserError

SHOWN = 5  # rows of a list that a refusal names


class SearchFailed(Exception):
    """Nothing that was tried has a score."""


@dataclass(frozen=True)
class Search:
    """A config with what it needs to run; making one writes nothing."""

    config: SearchConfig
    evaluator: Evaluator
    costs: Sequence[Cost]
    space: Space  # the patterns that may be tried
    layouts: Sequence[Layout] = ()  # rows of the engine's file, those included that are skipped

    @property
    def listed(self) -> list[Pattern]:
        """Return the patterns of the engine's file."""
        return [layout.pattern for layout in self.layouts if layout.pattern is not None]

    def progress(self, rows: Sequence[Row]) -> Progress:
        """Read where the search is from all rows of its record; raises as `read_progress` does."""
        return read_progress(self.config, self.space, rows, self.listed)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for two searches to share a folder."""
        sections = self.config.model_dump(mode="json", include={"seeds", "methodology"})
        costs = [cost.identity() for cost in self.costs]
        cost = costs if len(costs) > 1 else costs[0] if costs else None
        return {"space": self.config.space.identity(), **sections, "cost": cost, "evaluator": self.evaluator.identity}

    @property
    def objectives(self) -> list[Cost]:
        """Return the costs that are to be small, beside the score."""
        return [cost for cost in self.costs if cost.is_objective]


def prepare(config: SearchConfig) -> Search:
    """Build what a search needs; raises UserError where a block, a file or a package is missing."""
    if isinstance(config.engine, Bayesian):
        require_botorch()
    costs, space = priced_space(config)
    read_progress(config, space, [])  # refuses what the methodology cannot build
    layouts = _read_list(config.engine, config, space) if isinstance(config.engine, Listed) else []
    begun = read_header(config.search_folder)
    there = begun.get("evaluator") if begun else None
    tests = begun is None or (isinstance(there, dict) and TEST in there)  # a folder goes on as it was begun
    return Search(config, make_evaluator(config, tests), costs, space, layouts)


def priced_space(config: SearchConfig) -> tuple[Sequence[Cost], Space]:
    """Return the costs of a search and the patterns that may be tried: those of its space within all limits."""
    costs = read_costs(config.cost, config.space.blocks, config.space.layers)
    return costs, limited(config.space.patterns, costs)


def _read_list(engine: Listed, config: SearchConfig, space: Space) -> list[Layout]:
    """Return the rows of the engine's file; raises UserError for one that is no pattern, unless these are skipped."""
    layouts = read_layouts(Path(engine.file), config.space, space)
    bad = [layout for layout in layouts if layout.pattern is None]
    if len(bad) == len(layouts) or (bad and not engine.skip_invalid):
        shown = "; ".join(f"line {layout.line}: {layout.text!r} {layout.reason}" for layout in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"engine.file = {engine.file}: {len(bad)} of {len(layouts)} rows are no patterns of the space: {shown}"
            f"{more}; expected valid ones, or engine.skip_invalid: true; `hybridtron search check` lists all"
        )
    return layouts


def work(search: Search, store: Store, watch: Callable[[Progress], None]) -> Progress:
    """Evaluate until nothing is left, beside any number of other workers; `watch` sees every change.

    Raises SearchFailed where every pattern of a step failed, since nothing is handed on then.
    """
    while True:
        with store.locked() as rows:
            progress, unit = next_unit(search, store, rows)
            watch(progress)
            if progress.is_complete or progress.is_stuck:
                break
            if unit is not None:
                store.append({"row": "claim", **named(search, unit), "worker": store.worker})
        if unit is None:
            time.sleep(WAIT_SECONDS)
        else:
            pattern, seed = unit
            layers = tuple(search.config.space.blocks[block] for block in pattern)
            result = attempt(partial(search.evaluator.evaluate, layers, seed), {"score": None})
            with store.locked():
                store.append({"row": "result", **named(search, unit), "worker": store.worker, **result})
    if progress.is_stuck:
        if progress.stopped:
            raise SearchFailed(f"search folder {store.folder}: nothing has a score: {progress.stopped}")
        errors = [row["error"] for row in progress.results.values() if "error" in row]
        raise SearchFailed(
            f"search folder {store.folder}: none of the {len(progress.steps[-1].failed)} patterns had a finite score"
            + (f"; the first error was {errors[0]}" if errors else "")
        )
    return progress


def next_unit(
    search: Search, store: Store, rows: Sequence[Row], known: Progress | None = None
) -> tuple[Progress, Unit | None]:
    """Return where the search is, and the next unit to evaluate, which is proposed if it is new.

    None where nothing is left, others have all of it, or what they have must end first. Needs the lock, under which
    what it returned before may be given as `known`, with the units taken since, to spare another look at the rows.
    Raises UserError where seeds were added that the budget does not allow.
    """
    progress = known or current_progress(search, store, rows)
    if not known and (admitted := admit_seeds(search.config, search.evaluator, progress, rows)):
        store.append(admitted)
    if progress.lacks_candidates:
        store.append(choose_candidates(search.config, progress.steps[-1]))
        progress = search.progress(rows)
    step = progress.steps[-1]
    unit = progress.open_unit(search.config.seeds, store)
    if unit is not None or progress.is_searched or len(step.proposals) >= step.budget:
        return progress, unit
    number = sum(len(earlier.proposals) for earlier in progress.steps)
    generator = np.random.default_rng([search.config.seed, number])
    count = min(search.config.engine.batch, step.budget - len(step.proposals))
    patterns = _propose(search, step, count, generator) or new_patterns(step.space, {*step.proposals}, 1, generator)
    patterns, reason = affordable(search.config, search.evaluator, progress, patterns)
    if reason:
        store.append(stop_row(search.config, reason))
        return next_unit(search, store, rows)
    if not patterns:
        return progress, None
    texts = [" ".join(step.space.names(pattern)) for pattern in patterns]
    store.append({"row": "propose", "step": step.number, "patterns": texts, "engine": search.config.engine.type})
    step.proposals += patterns
    return progress, (patterns[0], search.config.seeds[0])


def current_progress(search: Search, store: Store, rows: Sequence[Row]) -> Progress:
    """Return where the search is, and record the votes of complete steps that no row has yet. Needs the lock."""
    progress = search.progress(rows)
    for step in progress.steps:
        if step.aggregate and not step.is_recorded:
            store.append(vote_row(search.config, step.number, step.space, step.finished, step.aggregate))
            step.is_recorded = True
    return progress


def _propose(search: Search, step: Step, count: int, generator: np.random.Generator) -> list[Pattern]:
    """Propose at most `count` new patterns; failed ones count as the worst score seen."""
    worst = min((o.score for o in step.finished), default=0.0)
    failed = [Observation(pattern, worst, seeds=len(search.config.seeds)) for pattern in step.failed]
    seen = with_noise([*step.finished, *failed], step.noise)
    history = History(step.space, seen, step.pending, search.config.seed, search.listed)
    engine = search.config.engine
    if not search.objectives:
        return engine.propose(history, count, generator)
    found: list[Pattern] = []
    for _ in range(count):  # a weight of its own for each
        weighed = scalarised(seen, search.objectives, generator)
        found += engine.propose(replace(history, finished=weighed, pending=[*step.pending, *found]), 1, generator)
    return found


def named(search: Search, unit: Unit) -> Row:
    """Return a unit as the keys of a row."""
    pattern, seed = unit
    return {"pattern": " ".join(search.config.space.blocks[block] for block in pattern), "seed": seed}
