"""Sentences about a search: its constraints, its rules, its result and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from hybridtron.composer.nas.config import FREE, SpaceConfig
from hybridtron.composer.nas.progress import Step
from hybridtron.composer.nas.space import Pattern as Indices
from hybridtron.composer.nas.space import Space
from hybridtron.composer.report.outcome import Outcome
from hybridtron.pattern import COMPOSER_NAMES, Pattern, to_composer
from hybridtron.reporting.numbers import decimal, decimals, plural

COSTS = {"flops": "FLOPs per token", "parameters": "parameters", "cache": "elements of cache"}
TARGETS = {  # models to grow a pattern to, by the blocks that they have
    ("attn", "mlp"): "configs/models/llama3_2.yaml size=1b",
    ("attn", "mamba", "mlp"): "configs/models/nemotron_h.yaml size=1b",
}
UNKNOWN_TARGET = "TARGET.yaml"
BEST_SINGLE = "best single is the evaluated pattern with the highest score."
TRUSTED = 0.5  # rank correlation from which a surrogate's predictions say something


def pattern_text(space: Space, pattern: Indices) -> str:
    """Return a pattern in this project's notation."""
    return str(Pattern(space.names(pattern)))


def notation(space: Space, pattern: Indices) -> str | None:
    """Return Composer's notation, 1A+3M, where all blocks of the space have letters."""
    if not set(space.blocks) <= set(COMPOSER_NAMES.values()):
        return None
    return to_composer(Pattern(space.names(pattern)))


def short(space: Space, pattern: Indices) -> str:
    """Return Composer's notation where there is one, else this project's."""
    return notation(space, pattern) or pattern_text(space, pattern)


def constraints(space: SpaceConfig) -> list[str]:
    """Return a phrase for each constraint."""
    return list(_constraints(space))


def _constraints(space: SpaceConfig) -> Iterator[str]:
    for name, count in space.at_most.items():
        yield f"at most {count} {name}" if count else f"no {name}"
    for name, count in space.at_least.items():
        yield f"at least {count} {name}"
    for name, count in space.longest_run.items():
        yield f"at most {count} {name} in a row" if count > 1 else f"{name} never twice in a row"
    for name in space.never_first:
        yield f"{name} never first"
    for name in space.never_last:
        yield f"{name} never last"
    for first, second in space.never_adjacent:
        yield f"{second} never right after {first}"
    fixed = [f"layer {i} is {word}" for i, word in enumerate(space.fixed_words, start=1) if word != FREE]
    if fixed:
        yield ", ".join(fixed)


def voters(outcome: Outcome) -> str:
    """Return which patterns vote."""
    top = outcome.search.config.aggregator.top
    return "the best cluster of scores" if top == 1 else f"the best {top} clusters of scores"


def rule_sentences(outcome: Outcome) -> list[str]:
    """Return a definition of each rule, the config's own included."""
    own = outcome.search.config.aggregator.context
    lines = [f"N_0 takes at each layer, by itself, the block that most patterns of {voters(outcome)} have there."]
    for context in [1, *([] if own in (0, 1, "all") else [own]), "all"]:
        before = "all layers chosen before" if context == "all" else _before(context)
        lines.append(f"N_{context} lets at each layer only those patterns vote that agree with {before}.")
    return [*lines, BEST_SINGLE]


def _before(context: int | str) -> str:
    return "the layer chosen just before" if context == 1 else f"the {context} layers chosen just before"


def verdict(outcome: Outcome) -> str:
    """Compare the vote with the best pattern that was evaluated in the last step, with both scores."""
    space, quantity = outcome.step.space, outcome.search.evaluator.quantity
    evaluated = "evaluated in the last step" if outcome.progress.total_steps > 1 else "evaluated"
    chosen, best = outcome.aggregate.pattern, max(outcome.observations, key=lambda o: o.score)
    score = outcome.score_of(chosen)
    digits = decimals([best.score, score])
    high, name = decimal(best.score, digits), pattern_text(space, best.pattern)
    if score is None:
        return (
            f"The vote was not among the patterns {evaluated} and has no {quantity} yet; the best that was, {name}, "
            f"has {high}."
        )
    if score < best.score:
        return (
            f"A pattern that was {evaluated} is better: {name} has a {quantity} of {high}, the vote one of "
            f"{decimal(score, digits)}."
        )
    return f"No pattern that was {evaluated} is better: its {quantity} is {high}."


def ties(step: Step) -> str | None:
    """Return which layers were ties, and how these were resolved."""
    votes = step.aggregate.votes if step.aggregate else ()
    tied = [str(position) for position, vote in enumerate(votes, start=1) if vote.tied]
    if not tied:
        return None
    where = f"Layer {tied[0]} was a tie" if len(tied) == 1 else f"Layers {', '.join(tied)} were ties"
    return f"{where}, which went to the block whose voters score higher on average, then to the first in the space."


def warnings(outcome: Outcome) -> list[str]:
    """Return the limits of the result."""
    found = []
    if outcome.note:
        found.append(outcome.note)
    if outcome.progress.total_steps > 1:
        found.append(
            "Scores belong to a step: patterns of different lengths are different problems, and a step saw only what "
            "could be built around the pattern handed to it. None is known to be best of the whole space."
        )
    return found


def surrogate_sentence(correlation: float, engines: set[str]) -> str:
    """Return what the fit means for this search."""
    fit = "A Gaussian process predicts every score from all others."
    if "bayesian" not in engines:
        names = " and ".join(sorted(engines))
        return f"{fit} The engine here ({names}) did not use it; it shows how well the other scores predict one."
    if correlation >= TRUSTED:
        return f"{fit} Points near the diagonal mean that the search can be trusted to have known where to look."
    return (
        f"{fit} Here predictions and scores hardly agree (rank correlation {decimal(correlation, 2)}): the search had "
        "little to go by, and more evaluations or seeds are needed before its choices mean something."
    )


def next_command(outcome: Outcome) -> tuple[str, str]:
    """Return the command that makes a training config of the result, and a note on its target."""
    config, used = outcome.search.config, set(outcome.step.space.names(outcome.aggregate.pattern))
    if config.cost:
        target = shlex.join([config.cost.model, *config.cost.overrides])
    else:
        target = next((model for blocks, model in TARGETS.items() if used <= set(blocks)), UNKNOWN_TARGET)
    blocks = f"the config of a run whose blocks have the names {', '.join(sorted(used))}"
    known = f"The target is an example; it can be {blocks}." if target != UNKNOWN_TARGET else f"{target}: {blocks}."
    pattern = shlex.quote(outcome.text(outcome.aggregate.pattern))
    command = f"hybridtron scale {pattern} --method stack --target {target} --out {config.name}-grown.yaml"
    return command, known + (" Any pattern of the front can stand in its place." if outcome.front else "")


def cost_head(outcome: Outcome) -> str:
    """Return the label of the column of costs."""
    assert outcome.search.config.cost
    return COSTS[outcome.search.config.cost.measure]


def count_evaluated(outcome: Outcome) -> str:
    """Return how many patterns were evaluated over the whole search."""
    steps = outcome.progress.steps
    count = sum(len(step.finished) for step in steps)
    if outcome.progress.total_steps == 1:
        return f"{count:,} of {plural(outcome.step.space.size, 'pattern')} evaluated"
    each = ", ".join(f"{len(step.finished):,} with {plural(step.space.layers, 'layer')}" for step in steps)
    return f"{plural(count, 'pattern')} evaluated in {plural(len(steps), 'step')} ({each})"
