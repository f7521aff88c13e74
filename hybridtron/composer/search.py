"""`hybridtron search`: workers that propose, claim, evaluate and record until the search is complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybridtron.composer.config import BayesianConfig, SearchConfig
from hybridtron.composer.cost import Cost, read_cost, scalarised
from hybridtron.composer.engines import Engine, make_engine, new_patterns
from hybridtron.composer.evaluators import Evaluator, make_evaluator
from hybridtron.composer.progress import Progress, Unit, read_progress
from hybridtron.composer.store import Store, Transaction
from hybridtron.errors import UserError

WAIT_SECONDS = 0.5  # between looks at the store while other workers have all that is left


@dataclass(frozen=True)
class Search:
    """A config with what it needs to run; making one writes nothing."""

    config: SearchConfig
    engine: Engine
    evaluator: Evaluator
    cost: Cost | None

    def identity(self) -> dict:
        """What must be the same for two searches to share a folder."""
        sections = self.config.model_dump(mode="json", include={"space", "seeds", "methodology", "cost"})
        return {**sections, "evaluator": self.evaluator.identity}


def prepare(config: SearchConfig) -> Search:
    """Raises UserError where a block, a file or a package is missing."""
    if isinstance(config.engine, BayesianConfig):
        from hybridtron.composer.bayesian import require_botorch

        require_botorch()
    cost = read_cost(config.cost, config.space.blocks) if config.cost else None
    return Search(config, make_engine(config.engine, config.seed), make_evaluator(config), cost)


def work(search: Search, store: Store, watch: Callable[[Progress], None]) -> Progress:
    """Evaluate until nothing is left, beside any number of other workers; `watch` sees every change.

    Raises UserError where every pattern failed, since a step without a score hands nothing on.
    """
    while True:
        with store.transaction() as transaction:
            progress = read_progress(search.config, transaction.rows)
            watch(progress)
            if progress.is_complete or _is_stuck(progress):
                break
            unit = _next_unit(search, progress, transaction)
            if unit is not None:
                transaction.append({"row": "claim", **_named(search, unit), "worker": store.worker})
        if unit is None:
            time.sleep(WAIT_SECONDS)
        else:
            _evaluate(search, unit, store)
    if _is_stuck(progress):
        raise UserError(
            f"search folder {store.folder}: none of the {len(progress.steps[-1].failed)} patterns had a finite score"
        )
    return progress


def _is_stuck(progress: Progress) -> bool:
    last = progress.steps[-1]
    return last.is_complete and not last.finished


def _next_unit(search: Search, progress: Progress, transaction: Transaction) -> Unit | None:
    """Something proposed and not being worked on, else a new proposal; None where the rest is others' work."""
    step = progress.steps[-1]
    unit = progress.open_unit(search.config.seeds, transaction)
    if unit is not None or len(step.proposals) >= step.budget:
        return unit
    number = sum(len(earlier.proposals) for earlier in progress.steps)
    generator = np.random.default_rng([search.config.seed, number])
    observations = step.finished if search.cost is None else scalarised(step.finished, search.cost, generator)
    count = min(search.config.engine.batch, step.budget - len(step.proposals))
    known = [*step.pending, *step.failed]
    patterns = search.engine.propose(step.space, observations, known, count, generator)
    patterns = patterns or new_patterns(step.space, {*step.proposals}, 1, generator)
    texts = [" ".join(step.space.names(pattern)) for pattern in patterns]
    transaction.append({"row": "propose", "step": step.number, "patterns": texts})
    return patterns[0], search.config.seeds[0]


def _evaluate(search: Search, unit: Unit, store: Store) -> None:
    pattern, seed = unit
    begun = time.perf_counter()
    measured = search.evaluator.evaluate(tuple(search.config.space.blocks[block] for block in pattern), seed)
    seconds = round(time.perf_counter() - begun, 3)
    with store.transaction() as transaction:
        transaction.append(
            {
                "row": "result",
                **_named(search, unit),
                "score": measured.score,
                "seconds": seconds,
                "worker": store.worker,
                **measured.detail,
            }
        )


def _named(search: Search, unit: Unit) -> dict:
    pattern, seed = unit
    return {"pattern": " ".join(search.config.space.blocks[block] for block in pattern), "seed": seed}
