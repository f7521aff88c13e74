"""What the tables of a search show: patterns, rules, clusters, steps and failures as columns."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.progress import Step
from hybridtron.composer.report.outcome import BEST_SHOWN, Outcome, returned
from hybridtron.composer.report.statistics import Effort
from hybridtron.composer.report.tables import Column, fixed, whole, words
from hybridtron.composer.report.wording import cost_head, notation, pattern_text, short

FRONT_SHOWN = 10  # patterns of the Pareto front in the terminal and in the page's first card


def pattern_columns(step: Step, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """The patterns, and Composer's form of them where there is one."""
    columns = [words("pattern", [pattern_text(step.space, pattern) for pattern in patterns])]
    letters = [notation(step.space, pattern) for pattern in patterns]
    return columns + ([words("Composer", letters)] if any(letters) else [])


def score_columns(outcome: Outcome, observations: Sequence[Observation]) -> list[Column]:
    columns = [fixed("score", [o.score for o in observations])]
    if len(outcome.search.config.seeds) > 1:
        columns.append(fixed("standard error", [o.error for o in observations]))
    if outcome.search.cost:
        columns.append(whole(cost_head(outcome), [outcome.search.cost(o.pattern) for o in observations]))
    return columns


def task_columns(effort: Effort, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Accuracy by task, where the evaluator has tasks."""
    return [fixed(name, [effort.tasks[pattern].get(name) for pattern in patterns]) for name in effort.task_names]


def best(outcome: Outcome, step: Step, effort: Effort) -> list[Column]:
    ranked = sorted(step.finished, key=lambda o: -o.score)[:BEST_SHOWN]
    patterns = [o.pattern for o in ranked]
    return [
        whole("rank", range(1, len(ranked) + 1)),
        *pattern_columns(step, patterns),
        *score_columns(outcome, ranked),
        *task_columns(effort, patterns),
    ]


def front(outcome: Outcome, most: int | None = None) -> list[Column]:
    """The Pareto front, cheapest first; of more than `most`, these are evenly spread, both ends included."""
    numbers = list(range(len(outcome.front or ())))
    if most is not None and len(numbers) > most:
        numbers = [round(i * (len(numbers) - 1) / (most - 1)) for i in range(most)]
    shown = [outcome.observations[(outcome.front or [])[i]] for i in numbers]
    return [
        whole("#", [i + 1 for i in numbers]),
        *pattern_columns(outcome.step, [o.pattern for o in shown]),
        *score_columns(outcome, shown),
    ]


def rules(outcome: Outcome, step: Step) -> list[Column]:
    """What each rule makes of a step's evaluations."""
    if step.aggregate is None:
        return []
    found = returned(step, step.aggregate)
    scores = {o.pattern: o.score for o in step.finished}
    known = [scores.get(pattern) for _, pattern in found]
    return [
        words("rule", [name for name, _ in found]),
        *pattern_columns(step, [pattern for _, pattern in found]),
        fixed("score", known),
        words("evaluated", ["no" if score is None else "yes" for score in known]),
    ]


def clusters(step: Step) -> list[Column]:
    groups = step.aggregate.clusters if step.aggregate else ()
    return [
        whole("cluster", range(1, len(groups) + 1)),
        whole("patterns", [len(group) for group in groups]),
        fixed("lowest score", [min(group) for group in groups]),
        fixed("highest score", [max(group) for group in groups]),
    ]


def steps(outcome: Outcome) -> list[Column]:
    done = outcome.progress.steps
    winners = [max(step.finished, key=lambda o: o.score) for step in done]
    return [
        whole("step", [step.number + 1 for step in done]),
        whole("layers", [step.space.layers for step in done]),
        whole("patterns possible", [step.space.size for step in done]),
        whole("evaluated", [len(step.finished) for step in done]),
        whole("failed", [len(step.failed) for step in done]),
        fixed("best score", [o.score for o in winners]),
        words("best pattern", [short(s.space, o.pattern) for s, o in zip(done, winners, strict=True)]),
        words("handed on", [short(s.space, s.found) if s.found else None for s in done]),
    ]


def failures(outcome: Outcome, effort: Effort) -> list[Column]:
    failed = [(step, pattern) for step in outcome.progress.steps for pattern in step.failed]
    return [
        words("pattern", [pattern_text(step.space, pattern) for step, pattern in failed]),
        words("error", [effort.errors[pattern] or "the score was not finite" for _, pattern in failed]),
    ]


def everything(outcome: Outcome, step: Step, effort: Effort) -> list[Column]:
    """All evaluated patterns of a step, in the order of the proposals."""
    patterns = [o.pattern for o in step.finished]
    order = {pattern: number for number, pattern in enumerate(step.proposals, start=1)}
    columns = [
        whole("#", [order[pattern] for pattern in patterns]),
        *pattern_columns(step, patterns),
        *score_columns(outcome, step.finished),
        *task_columns(effort, patterns),
        fixed("seconds", [effort.seconds[pattern] for pattern in patterns], 2),
    ]
    if len(effort.engine_counts) > 1:
        columns.append(words("engine", [effort.engines[pattern] for pattern in patterns]))
    return columns
