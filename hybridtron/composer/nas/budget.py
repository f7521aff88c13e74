"""What the evaluations of a search have cost, and which more its budget allows."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.composer.evaluation.evaluators import Evaluator
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress, stop_key
from hybridtron.composer.nas.store import Row
from hybridtron.composer.space.space import Pattern
from hybridtron.errors import UserError
from hybridtron.reporting.numbers import plural

WORDS = {"flops": "FLOPs", "hours": "hours of evaluation"}
HOUR = 3600  # seconds


def affordable(
    config: SearchConfig, evaluator: Evaluator, progress: Progress, patterns: Sequence[Pattern]
) -> tuple[list[Pattern], str | None]:
    """Return the first of `patterns` that the budget still allows with all seeds; if none, why.

    What is proposed and has no result yet counts as spent: FLOPs by the model, hours as the longest evaluation so far.
    Before any has ended, hours allow one pattern: none, without a reason, while that is evaluated.
    """
    step, seeds = progress.steps[-1], len(config.seeds)
    limits = config.budget.limits if config.budget else {}
    units = [(pattern, seed) for pattern in step.proposals for seed in config.seeds]
    waiting = sum(unit not in progress.results for unit in units)
    longest = _longest(progress)
    allowed = list(patterns)
    for key, limit in limits.items():
        names = step.space.names
        costs = [seeds * (evaluator.cost(names(p)) if key == "flops" else longest) for p in allowed]
        if key == "flops":
            spent = seeds * sum(evaluator.cost(names(p)) for p in step.proposals)
        else:
            spent = spent_on(config, evaluator, progress)[key] + waiting * longest
            if not longest:
                allowed = [] if waiting else allowed[:1]
                continue
        fitting = 0
        while fitting < len(allowed) and spent + sum(costs[: fitting + 1]) <= limit:
            fitting += 1
        if allowed and not fitting:
            return [], f"the next evaluation would exceed {limit:g} {WORDS[key]}: {spent:.4g} are spent"
        allowed = allowed[:fitting]
    return allowed, None


def admit_seeds(config: SearchConfig, evaluator: Evaluator, progress: Progress, rows: Sequence[Row]) -> Row | None:
    """Return the row that says which seeds were added and fit the budget; None where none were, or one says so.

    Raises UserError where the patterns that are there would exceed the budget with them: with some of its seeds a
    pattern has no score, so that seeds are added for all patterns or for none. Each addition is asked once: from then
    on a config without these seeds is refused.
    """
    limits = config.budget.limits if config.budget else {}
    row = {"row": "seeds", "of": config.seeds}
    is_admitted = any(other["row"] == "seeds" and other.get("of") == config.seeds for other in rows)
    if is_admitted or sorted(rows[0].get("seeds", [])) == config.seeds:
        return None
    step = progress.steps[-1]
    is_waiting = any((pattern, seed) not in progress.results for pattern in step.proposals for seed in config.seeds)
    needed = planned(config, evaluator, progress)
    for key, limit in limits.items():
        if is_waiting and needed[key] > limit:
            raise UserError(
                f"seeds = {config.seeds}: with them the {plural(len(step.proposals), 'pattern')} of the search would "
                f"exceed {limit:g} {WORDS[key]}; expected fewer seeds, or budget.{key} of at least {needed[key]!r}"
            )
    return row


def planned(config: SearchConfig, evaluator: Evaluator, progress: Progress) -> dict[str, float]:
    """Return the FLOPs and hours of all that is proposed, with all seeds; what has no result yet counts as the longest
    evaluation so far."""
    step = progress.steps[-1]
    waiting = sum((pattern, seed) not in progress.results for pattern in step.proposals for seed in config.seeds)
    return {
        "flops": len(config.seeds) * sum(evaluator.cost(step.space.names(pattern)) for pattern in step.proposals),
        "hours": spent_on(config, evaluator, progress)["hours"] + waiting * _longest(progress),
    }


def spent_on(config: SearchConfig, evaluator: Evaluator, progress: Progress) -> dict[str, float]:
    """Return the FLOPs, where the evaluator counts them, and the hours of all evaluations on the search's own seeds.

    One that was told without seconds counts as the longest.
    """
    done = {unit: row for unit, row in progress.results.items() if unit[1] in config.seeds}
    names = progress.steps[-1].space.names
    longest = _longest(progress)
    hours = sum(row["seconds"] / HOUR if "seconds" in row else longest for row in done.values())
    if evaluator.flops is None:
        return {"hours": hours}
    return {"flops": float(sum(evaluator.cost(names(pattern)) for pattern, _ in done)), "hours": hours}


def _longest(progress: Progress) -> float:
    """Return the hours of the longest evaluation so far; 0 where none is known."""
    return max((row.get("seconds", 0.0) for row in progress.results.values()), default=0.0) / HOUR


def stop_row(config: SearchConfig, reason: str) -> Row:
    """Return the row that ends a search by its budget; another budget goes on."""
    return {"row": "stop", "of": stop_key(config), "reason": reason}
