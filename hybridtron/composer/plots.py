"""The pictures of a search as PNG images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from hybridtron.composer.outcome import Outcome
from hybridtron.laws.plots import FAINT, GRID, HUES, INK, short_number


def draw(outcome: Outcome) -> dict[str, bytes]:
    """PNG images by file name: votes, regret, and where there are any the surrogate's fit and the Pareto front."""
    images = {"votes.png": _votes(outcome), "regret.png": _regret(outcome)}
    if outcome.surrogate:
        images["surrogate.png"] = _surrogate(outcome)
    if outcome.front is not None:
        images["pareto.png"] = _pareto(outcome)
    return images


def _votes(outcome: Outcome) -> bytes:
    """For each position, the voters' blocks as shares; a dot marks the chosen one."""
    votes, blocks = outcome.aggregate.votes, outcome.step.space.blocks
    figure, axes = _figure(max(6.0, 0.42 * len(votes) + 2.5), 3.4)
    totals = np.array([max(1, sum(vote.counts)) for vote in votes])
    bottom = np.zeros(len(votes))
    for index, block in enumerate(blocks):
        shares = np.array([vote.counts[index] for vote in votes]) / totals
        colour = HUES[index % len(HUES)]
        axes.bar(range(1, len(votes) + 1), shares, bottom=bottom, width=0.8, color=colour, label=block, zorder=2)
        for position, vote in enumerate(votes):
            if vote.chosen == index:
                middle = bottom[position] + shares[position] / 2
                axes.plot(position + 1, middle, "o", color="white", markersize=5, zorder=3)
        bottom += shares
    count = len(outcome.aggregate.voters)
    _dress(axes, f"Votes of {count} pattern{'s' * (count > 1)}; dot: the choice", "layer", "share of votes")
    axes.set_xticks(range(1, len(votes) + 1))
    axes.set_ylim(0, 1)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return _png(figure)


def _regret(outcome: Outcome) -> bytes:
    """The best score so far, as its distance from the optimum where that is known."""
    scores = np.array([o.score for o in outcome.observations])
    best, optimum = np.maximum.accumulate(scores), outcome.optimum
    figure, axes = _figure(7.2, 3.8)
    x = np.arange(1, len(scores) + 1)
    shown, line = (scores, best) if optimum is None else (optimum - scores, optimum - best)
    axes.scatter(x, shown, s=22, color=HUES[5], linewidths=0, label="each evaluation", zorder=2)
    axes.step(x, line, where="post", color=HUES[0], linewidth=2, label="best so far", zorder=3)
    quantity = outcome.search.evaluator.quantity
    title = "Regret over evaluations" if optimum is not None else "Best score over evaluations"
    _dress(axes, title, "evaluations", quantity if optimum is None else f"distance from the best {quantity}")
    axes.legend(loc="best", framealpha=0.9, edgecolor=GRID, fontsize=9, labelcolor=INK)
    return _png(figure)


def _surrogate(outcome: Outcome) -> bytes:
    fit = outcome.surrogate
    assert fit is not None
    scores = np.array([o.score for o in outcome.observations])
    figure, axes = _figure(5.6, 4.6)
    axes.errorbar(fit.mean, scores, xerr=fit.deviation, fmt="none", ecolor=HUES[5], elinewidth=0.8, alpha=0.6, zorder=1)
    axes.scatter(fit.mean, scores, s=26, color=HUES[0], linewidths=0, zorder=3)
    low, high = min(scores.min(), fit.mean.min()), max(scores.max(), fit.mean.max())
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--", zorder=2)
    title = f"Surrogate: left out and predicted (rank correlation {fit.correlation:.2f})"
    _dress(axes, title, "predicted from all others, ± 1 standard deviation", outcome.search.evaluator.quantity)
    return _png(figure)


def _pareto(outcome: Outcome) -> bytes:
    cost, front = outcome.search.cost, outcome.front
    assert cost is not None
    assert front is not None
    costs = np.array([cost(o.pattern) for o in outcome.observations])
    scores = np.array([o.score for o in outcome.observations])
    figure, axes = _figure(7.2, 4.4)
    axes.scatter(costs, scores, s=22, color=HUES[5], linewidths=0, label="evaluated", zorder=2)
    axes.step(costs[front], scores[front], where="post", color=HUES[1], linewidth=1.5, zorder=3)
    axes.scatter(costs[front], scores[front], s=42, color=HUES[1], linewidths=0, label="Pareto front", zorder=4)
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    _dress(axes, "Score against cost", cost.label, outcome.search.evaluator.quantity)
    axes.legend(loc="lower right", framealpha=0.9, edgecolor=GRID, fontsize=9, labelcolor=INK)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    return figure, figure.subplots()


def _dress(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x_label, color=INK, fontsize=9.5)
    axes.set_ylabel(y_label, color=INK, fontsize=9.5)
    axes.tick_params(colors=FAINT, labelsize=9, length=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
