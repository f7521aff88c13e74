"""The pictures of a search, all of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridtron.composer.nas.progress import Step
from hybridtron.composer.report.canvas import SMALL, one_panel, plain_numbers, quantity
from hybridtron.composer.report.front_plot import draw_front
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.space.space import Pattern
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.pictures import FAINT, GRID, HUES, INK, label_axes, legend_below, png

OUTSIDE = 3.0  # times the middle half's range beyond its ends: points farther out do not set the axes


def draw(outcome: Outcome, engines: Mapping[Pattern, str]) -> dict[str, bytes]:
    """Return PNG images by file name: votes of each step, regret, and where there are any the surrogate's fit and the
    Pareto front. `engines` maps patterns to the engines that proposed them."""
    images = {}
    for step in outcome.progress.steps:
        if step.aggregate is not None:
            images[votes_name(outcome, step)] = _votes(outcome, step)
    images["regret.png"] = _regret(outcome, engines)
    if outcome.surrogate:
        images["surrogate.png"] = _surrogate(outcome)
    if outcome.front is not None:
        images["pareto.png"] = draw_front(outcome)
    return images


def votes_name(outcome: Outcome, step: Step) -> str:
    """Return the file name of a step's picture of votes."""
    return "votes.png" if not outcome.several_steps else f"votes-{step.number + 1}.png"


def _votes(outcome: Outcome, step: Step) -> bytes:
    """Draw for each layer the voters' blocks as shares: a dot marks the chosen one, = a tie, pale what was given."""
    from matplotlib.ticker import MaxNLocator

    assert step.aggregate is not None
    votes, blocks = step.aggregate.votes, step.space.blocks
    figure, axes = one_panel(3.6)
    layers = np.arange(1, len(votes) + 1)
    totals = np.array([max(1, sum(vote.counts)) for vote in votes])
    given = [position in step.space.fixed for position in range(len(votes))]
    opacity = [0.35 if pale else 1.0 for pale in given]
    bottom = np.zeros(len(votes))
    dot = float(np.clip(220 / len(votes), 1.5, 5.5))
    for index, block in enumerate(blocks):
        shares = np.array([vote.counts[index] for vote in votes]) / totals
        colour = HUES[index % len(HUES)]
        axes.bar(layers, shares, bottom=bottom, width=0.8, color=[(colour, alpha) for alpha in opacity], zorder=2)
        axes.scatter([], [], s=60, marker="s", color=colour, label=block)
        chosen = np.array([vote.chosen == index for vote in votes])
        axes.plot(layers[chosen], (bottom + shares / 2)[chosen], "o", color="white", markersize=dot, zorder=3)
        bottom += shares
    for layer, vote, pale in zip(layers, votes, given, strict=True):
        if vote.tied and not pale:
            axes.text(layer, 1.01, "=", ha="center", va="bottom", fontsize=SMALL, color=INK)
    signs = ["dot: the choice"]
    signs += ["=: a tie"] if any(vote.tied for vote in votes) else []
    signs += ["pale: given"] if any(given) else []
    title = f"Votes of {plural(len(step.aggregate.voters), 'pattern')} ({', '.join(signs)})"
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    return _finished(figure, axes, title, "layer", "share of votes")


def _regret(outcome: Outcome, engines: Mapping[Pattern, str]) -> bytes:
    """Draw the best score so far in each step, as its distance from the optimum where that is known."""
    from matplotlib.ticker import MaxNLocator

    optimum, seeds = outcome.optimum, len(outcome.search.config.seeds)
    figure, axes = one_panel(4.2)
    begun = 0
    for step in outcome.progress.steps:
        number = {pattern: begun + i for i, pattern in enumerate(step.proposals, start=1)}
        x = np.array([number[o.pattern] for o in step.finished])
        scores = np.array([o.score for o in step.finished])
        best = np.maximum.accumulate(scores) if len(scores) else scores
        shown, line = (scores, best) if optimum is None else (optimum - scores, optimum - best)
        if begun:
            axes.axvline(begun + 0.5, color=FAINT, linewidth=1, linestyle=":")
        if seeds > 1:
            errors = [o.error for o in step.finished]
            axes.errorbar(x, shown, yerr=errors, fmt="none", ecolor=HUES[5], elinewidth=1, alpha=0.8, zorder=1)
        look = {"color": HUES[5], "edgecolors": HUES[0], "linewidths": 0.5, "label": "each evaluation", "zorder": 2}
        axes.scatter(x, shown, s=24, **look)
        end = begun + len(step.proposals) + 0.5
        look = {"color": HUES[0], "linewidth": 2, "label": "best so far", "zorder": 3}
        axes.step([*x, end], [*line, *line[-1:]], where="post", **look)
        start = _sobol_start(outcome, step, engines)
        if start:
            shade = {"color": GRID, "alpha": 0.6, "linewidth": 0, "zorder": 0, "label": "Sobol start"}
            axes.axvspan(begun + 0.5, begun + start + 0.5, **shade)
        begun += len(step.proposals)
    axes.set_xlim(0.5, begun + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    plain_numbers(axes.yaxis)
    what = quantity(outcome)
    steps = ", step by step (dotted lines)" if len(outcome.progress.steps) > 1 else ""
    title = "Regret over evaluations" if optimum is not None else f"Best score over evaluations{steps}"
    noisy = optimum is not None and outcome.is_noisy and outcome.search.evaluator.optimum is None
    title = "Distance from the highest score, which noise has raised" if noisy else title
    y_label = what if optimum is None else f"distance from the {'highest' if noisy else 'best'} {what}"
    return _finished(figure, axes, title, "patterns evaluated", y_label)


def _sobol_start(outcome: Outcome, step: Step, engines: Mapping[Pattern, str]) -> int:
    """Return how many of the step's first patterns are of the Bayesian engine's Sobol sequence."""
    size = getattr(outcome.search.config.engine, "start", 0)
    early = step.proposals[:size]
    return len(early) if all(engines.get(pattern) == "bayesian" for pattern in early) else 0


def _surrogate(outcome: Outcome) -> bytes:
    fit = outcome.surrogate
    assert fit is not None
    figure, axes = one_panel(6.4)
    bars: dict[str, Any] = {"fmt": "none", "ecolor": HUES[5], "elinewidth": 0.9, "alpha": 0.7, "zorder": 1}
    axes.errorbar(fit.mean, fit.scores, xerr=fit.deviation, label="± 1 standard deviation predicted", **bars)
    if len(outcome.search.config.seeds) > 1:
        errors = [o.error for o in outcome.observations[-len(fit.scores) :]]
        bars["ecolor"] = FAINT
        axes.errorbar(fit.mean, fit.scores, yerr=errors, label="± 1 standard error over seeds", **bars)
    axes.scatter(fit.mean, fit.scores, s=26, color=HUES[0], linewidths=0, zorder=3)
    low, high = without_outliers([*fit.mean, *fit.scores])
    pairs = np.stack([fit.mean, fit.scores])
    inside = np.all((pairs >= low) & (pairs <= high), axis=0)
    beyond = int(np.sum(~inside))
    if inside.any():
        low, high = float(pairs[:, inside].min()), float(pairs[:, inside].max())
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--", label="as measured", zorder=2)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    rank = f"rank correlation {fit.correlation:.2f}" if np.isfinite(fit.correlation) else "all predictions equal"
    if beyond:
        remark = f"{beyond} of {len(fit.scores)} points outside these axes"
        axes.text(0.02, 0.98, remark, transform=axes.transAxes, va="top", fontsize=SMALL, color=FAINT)
    title = f"Each score, predicted from the others ({rank})"
    return _finished(figure, axes, title, "predicted", f"measured {quantity(outcome)}")


def without_outliers(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values that lie within OUTSIDE times the interquartile range of the quartiles."""
    array = np.asarray(values, float)
    low, high = np.quantile(array, [0.25, 0.75])
    reach = OUTSIDE * (high - low)
    near = array[(array >= low - reach) & (array <= high + reach)] if reach else array
    return float(near.min()), float(near.max())


def _finished(figure: Any, axes: Any, title: str, x_label: str, y_label: str) -> bytes:
    """Label the axes, draw the legend and return the picture as PNG."""
    label_axes(axes, title, x_label, y_label)
    legend_below(figure, [axes], 4, SMALL)
    return png(figure)
