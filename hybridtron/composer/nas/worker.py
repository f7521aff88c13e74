"""`hybridtron search`: workers that propose, claim, evaluate and record until the search is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hybridtron.composer.engines.bayesian import Bayesian, require_botorch
from hybridtron.composer.engines.discrete import History, Observation, new_patterns
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.confirm import choose_candidates
from hybridtron.composer.nas.cost import Cost, limited, read_costs
from hybridtron.composer.nas.evaluators import Evaluator, make_evaluator
from hybridtron.composer.nas.noise import with_noise
from hybridtron.composer.nas.pareto import scalarised
from hybridtron.composer.nas.progress import Progress, Step, Unit, read_progress
from hybridtron.composer.nas.space import Pattern, Space
from hybridtron.composer.nas.store import Row, Store
from hybridtron.errors import UserError

WAIT_SECONDS = 0.5  # between looks at the store while other workers have all that is left


class SearchFailed(Exception):
    """Nothing that was tried has a score."""


@dataclass(frozen=True)
class Search:
    """A config with what it needs to run; making one writes nothing."""

    config: SearchConfig
    evaluator: Evaluator
    costs: Sequence[Cost]
    space: Space  # the patterns that may be tried

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for two searches to share a folder."""
        sections = self.config.model_dump(mode="json", include={"space", "seeds", "methodology"})
        costs = [cost.identity() for cost in self.costs]
        cost = costs if len(costs) > 1 else costs[0] if costs else None
        return {**sections, "cost": cost, "evaluator": self.evaluator.identity}

    @property
    def objectives(self) -> list[Cost]:
        """Return the costs that are to be small, beside the score."""
        return [cost for cost in self.costs if cost.is_objective]


def prepare(config: SearchConfig) -> Search:
    """Build what a search needs; raises UserError where a block, a file or a package is missing."""
    if isinstance(config.engine, Bayesian):
        require_botorch()
    costs = read_costs(config.cost, config.space.blocks, config.space.layers)
    space = limited(config.space.patterns, costs)
    read_progress(config, space, [])  # refuses what the methodology cannot build
    return Search(config, make_evaluator(config), costs, space)


def work(search: Search, store: Store, watch: Callable[[Progress], None]) -> Progress:
    """Evaluate until nothing is left, beside any number of other workers; `watch` sees every change.

    Raises SearchFailed where every pattern of a step failed, since nothing is handed on then.
    """
    while True:
        with store.locked() as rows:
            progress = read_progress(search.config, search.space, rows)
            if progress.lacks_candidates:
                store.append(choose_candidates(search.config, progress.steps[-1]))
                progress = read_progress(search.config, search.space, rows)
            watch(progress)
            if progress.is_complete or progress.is_stuck:
                break
            unit = _next_unit(search, progress, store)
            if unit is not None:
                store.append({"row": "claim", **_named(search, unit), "worker": store.worker})
        if unit is None:
            time.sleep(WAIT_SECONDS)
        else:
            result = _evaluate(search, unit)
            with store.locked():
                store.append({"row": "result", **_named(search, unit), "worker": store.worker, **result})
    if progress.is_stuck:
        errors = [row["error"] for row in progress.results.values() if "error" in row]
        raise SearchFailed(
            f"search folder {store.folder}: none of the {len(progress.steps[-1].failed)} patterns had a finite score"
            + (f"; the first error was {errors[0]}" if errors else "")
        )
    return progress


def _next_unit(search: Search, progress: Progress, store: Store) -> Unit | None:
    """Claim an open unit, or propose a new one; return None where other workers have all that is left."""
    step = progress.steps[-1]
    unit = progress.open_unit(search.config.seeds, store)
    if unit is not None or progress.is_searched or len(step.proposals) >= step.budget:
        return unit
    number = sum(len(earlier.proposals) for earlier in progress.steps)
    generator = np.random.default_rng([search.config.seed, number])
    count = min(search.config.engine.batch, step.budget - len(step.proposals))
    patterns = _propose(search, step, count, generator) or new_patterns(step.space, {*step.proposals}, 1, generator)
    texts = [" ".join(step.space.names(pattern)) for pattern in patterns]
    store.append({"row": "propose", "step": step.number, "patterns": texts, "engine": search.config.engine.type})
    return patterns[0], search.config.seeds[0]


def _propose(search: Search, step: Step, count: int, generator: np.random.Generator) -> list[Pattern]:
    """Propose at most `count` new patterns; failed ones count as the worst score seen."""
    worst = min((o.score for o in step.finished), default=0.0)
    failed = [Observation(pattern, worst, seeds=len(search.config.seeds)) for pattern in step.failed]
    seen = with_noise([*step.finished, *failed], step.noise)
    history = History(step.space, seen, step.pending, search.config.seed)
    engine = search.config.engine
    if not search.objectives:
        return engine.propose(history, count, generator)
    found: list[Pattern] = []
    for _ in range(count):  # a weight of its own for each
        weighed = scalarised(seen, search.objectives, generator)
        found += engine.propose(replace(history, finished=weighed, pending=[*step.pending, *found]), 1, generator)
    return found


def _evaluate(search: Search, unit: Unit) -> Row:
    """Return a score, or an error, and the seconds that it took."""
    pattern, seed = unit
    begun = time.perf_counter()
    try:
        measured = search.evaluator.evaluate(tuple(search.config.space.blocks[block] for block in pattern), seed)
    except UserError:
        raise
    except Exception as error:  # such as no memory left: of this pattern, the search goes on without it
        text = str(error).splitlines() or [""]
        measured = {"score": None, "error": f"{type(error).__name__}: {text[0]}"}
    return {**measured, "seconds": round(time.perf_counter() - begun, 3)}


def _named(search: Search, unit: Unit) -> Row:
    pattern, seed = unit
    return {"pattern": " ".join(search.config.space.blocks[block] for block in pattern), "seed": seed}
