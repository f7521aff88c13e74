"""The tables of a search: patterns, rules, clusters, steps and failures."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.progress import Step
from hybridtron.composer.report.evaluations import Evaluations
from hybridtron.composer.report.outcome import Outcome, ranked, rule_patterns, winner
from hybridtron.reporting.table import Column, Table, decimal_column, integer_column

FRONT_SHOWN = 10  # patterns of the Pareto front in the terminal and in the page's first card


def pattern_columns(outcome: Outcome, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Return the patterns, and Composer's form of them where there is one."""
    columns = [Column("pattern", [outcome.text(pattern) for pattern in patterns])]
    if outcome.names:
        columns.append(Column("name", [outcome.names.get(pattern) for pattern in patterns]))
    letters = [outcome.notation(pattern) for pattern in patterns]
    return columns + ([Column("Composer", letters)] if any(letters) else [])


def parameter_columns(outcome: Outcome, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Return the parameters of patterns, where the evaluator has models."""
    sizes = outcome.search.evaluator.sizes
    names = outcome.step.space.names
    is_cost = any(cost.name == "parameters" for cost in outcome.search.costs)
    label = "parameters evaluated" if is_cost else "parameters"
    return [integer_column(label, [sizes.parameters(names(p)) for p in patterns])] if sizes else []


def posterior_columns(outcome: Outcome, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Return posterior means and 95 % intervals of patterns of the last step, where the noise of scores is known."""
    found = [outcome.estimate(pattern) for pattern in patterns]
    if not any(found):
        return []
    names = ("posterior mean", "95 % from", "to")
    return [decimal_column(name, [f[i] if f else None for f in found]) for i, name in enumerate(names)]


def confirmation(outcome: Outcome) -> Table:
    """Return the patterns that were evaluated on fresh seeds, with their differences from the vote in pairs."""
    found = outcome.confirmed
    differences = [c.difference for c in found]
    return Table([
        *pattern_columns(outcome, [c.pattern for c in found]),
        Column("chosen as", [c.role for c in found]),
        decimal_column("score", [c.score.mean for c in found]),
        decimal_column("95 % from", [c.score.low for c in found]),
        decimal_column("to", [c.score.high for c in found]),
        decimal_column("from the vote", [d.mean if d else None for d in differences]),
        decimal_column("at least", [d.low if d else None for d in differences]),
        decimal_column("at most", [d.high if d else None for d in differences]),
        Column("beside the vote", [c.verdict for c in found]),
    ])  # fmt: skip


def score_columns(outcome: Outcome, observations: Sequence[Observation]) -> list[Column]:
    """Return scores, with their error over several seeds, parameters, and the costs that the search has."""
    columns = [decimal_column("score", [o.score for o in observations])]
    if len(outcome.search.config.seeds) > 1:
        columns.append(decimal_column("standard error", [o.error for o in observations]))
    columns += posterior_columns(outcome, [o.pattern for o in observations])
    columns += parameter_columns(outcome, [o.pattern for o in observations])
    return columns + cost_columns(outcome, [o.pattern for o in observations])


def cost_columns(outcome: Outcome, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Return every cost of the search."""
    return [
        (decimal_column if cost.is_time else integer_column)(cost.heading, [cost(pattern) for pattern in patterns])
        for cost in outcome.search.costs
    ]


def task_columns(evaluations: Evaluations, patterns: Sequence[tuple[int, ...]]) -> list[Column]:
    """Return accuracy by task, where the evaluator has tasks."""
    tasks = [evaluations.tasks[pattern] for pattern in patterns]
    return [decimal_column(name, [means.get(name) for means in tasks]) for name in evaluations.task_names]


def best(outcome: Outcome, step: Step, evaluations: Evaluations) -> Table:
    """Return the evaluated patterns with the highest scores."""
    shown = ranked(step)
    patterns = [o.pattern for o in shown]
    return Table([
        integer_column("rank", range(1, len(shown) + 1)),
        *pattern_columns(outcome, patterns),
        *score_columns(outcome, shown),
        *task_columns(evaluations, patterns),
    ])  # fmt: skip


def front(outcome: Outcome, most: int | None = None) -> Table:
    """Return the Pareto front, cheapest first; of more than `most`, evenly spread ones with both ends."""
    numbers = list(range(len(outcome.front or ())))
    if most is not None and len(numbers) > most:
        numbers = [round(i * (len(numbers) - 1) / (most - 1)) for i in range(most)]
    shown = [outcome.observations[(outcome.front or [])[i]] for i in numbers]
    return Table([
        integer_column("#", [i + 1 for i in numbers]),
        *pattern_columns(outcome, [o.pattern for o in shown]),
        *score_columns(outcome, shown),
    ])  # fmt: skip


def rules(outcome: Outcome, step: Step) -> Table:
    """Return the pattern that each rule makes of a step's evaluations."""
    found = outcome.rule_patterns() if step is outcome.step else rule_patterns(step)
    scores = {o.pattern: o.score for o in step.finished}
    known = [scores.get(pattern) for pattern in found.values()]
    return Table([
        Column("rule", list(found)),
        *pattern_columns(outcome, list(found.values())),
        decimal_column("score", known),
        *(posterior_columns(outcome, list(found.values())) if step is outcome.step else []),
        *parameter_columns(outcome, list(found.values())),
        Column("evaluated", ["no" if score is None else "yes" for score in known]),
    ])  # fmt: skip


def clusters(step: Step) -> Table:
    """Return the clusters of what voted in a step: scores or posterior means."""
    groups, by = (step.aggregate.clusters, step.aggregate.by) if step.aggregate else ((), "score")
    return Table([
        integer_column("cluster", range(1, len(groups) + 1)),
        integer_column("patterns", [len(group) for group in groups]),
        decimal_column(f"lowest {by}", [min(group) for group in groups]),
        decimal_column(f"highest {by}", [max(group) for group in groups]),
    ])  # fmt: skip


def steps(outcome: Outcome) -> Table:
    """Return a row for each step of an incremental search."""
    done = outcome.progress.steps
    winners = [winner(step) for step in done]
    return Table([
        integer_column("step", [step.number + 1 for step in done]),
        integer_column("layers", [step.space.layers for step in done]),
        integer_column("patterns possible", [step.space.size for step in done]),
        integer_column("evaluated", [len(step.finished) for step in done]),
        integer_column("failed", [len(step.failed) for step in done]),
        decimal_column("best score", [o.score for o in winners]),
        Column("best pattern", [outcome.short(o.pattern) for o in winners]),
        Column("handed on", [outcome.short(step.found) if step.found else None for step in done]),
    ])  # fmt: skip


def failures(outcome: Outcome, evaluations: Evaluations) -> Table:
    """Return the patterns whose evaluation failed."""
    failed = [pattern for step in outcome.progress.steps for pattern in step.failed]
    return Table([
        Column("pattern", [outcome.text(pattern) for pattern in failed]),
        Column("error", [evaluations.errors[pattern] or "the score was not finite" for pattern in failed]),
    ])  # fmt: skip


def skipped(outcome: Outcome) -> Table:
    """Return the rows of the engine's file that are no patterns of the space."""
    rows = outcome.skipped
    return Table([
        integer_column("line", [row.line for row in rows]),
        Column("pattern", [row.text for row in rows]),
        Column("reason", [row.reason for row in rows]),
    ])  # fmt: skip


def everything(outcome: Outcome, step: Step, evaluations: Evaluations) -> Table:
    """Return all evaluated patterns of a step, in the order of the proposals."""
    patterns = [o.pattern for o in step.finished]
    order = {pattern: number for number, pattern in enumerate(step.proposals, start=1)}
    columns = [
        integer_column("#", [order[pattern] for pattern in patterns]),
        *pattern_columns(outcome, patterns),
        *score_columns(outcome, step.finished),
        *task_columns(evaluations, patterns),
        decimal_column("seconds", [evaluations.seconds[pattern] for pattern in patterns], 2),
    ]
    if len(evaluations.engine_counts) > 1:
        columns.append(Column("engine", [evaluations.engines[pattern] for pattern in patterns]))
    return Table(columns)
