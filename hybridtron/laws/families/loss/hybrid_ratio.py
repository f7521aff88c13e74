"""L = E + A(r) N^-alpha + B(r) D^-beta: the share r of attention layers moves both terms, not the exponents.

log A(r) = log A + A1 r + A2 r^2 and log B(r) likewise: the smallest form that lets a ratio between the ends be the
best. The offsets follow the finding that architectures share exponents (2606.25008); no coefficients are published.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.formula import formula_law
from hybridtron.laws.fitting.curves.curve import CurveFit
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Settings

_POINTS = 401  # of a line of ratios on which the least loss is looked for


def loss(
    *, n_params: Any, tokens: Any, ratio: Any, E: Any, A: Any, A1: Any, A2: Any, alpha: Any, B: Any, B1: Any,
    B2: Any, beta: Any,
) -> Any:  # fmt: skip
    """Compute nats per token of a hybrid with this share of attention layers."""
    size, data = A * np.exp(ratio * (A1 + A2 * ratio)), B * np.exp(ratio * (B1 + B2 * ratio))
    return E + size * n_params**-alpha + data * tokens**-beta


def _at_largest(runs: Runs, ratios: Array) -> dict[str, Array]:
    """Return the columns of these ratios at the size and tokens of the largest run."""
    largest = int(np.argmax(runs["n_params"] * runs["tokens"]))
    return {name: np.full_like(ratios, runs[name][largest]) for name in ("n_params", "tokens")} | {"ratio": ratios}


def best_ratio(fitted: CurveFit, runs: Runs, settings: Settings) -> dict[str, Any]:
    """Estimate the ratio of least loss, inside the ratios tried, at the size and tokens of the largest run."""
    grid = np.linspace(runs["ratio"].min(), runs["ratio"].max(), _POINTS)
    at = _at_largest(runs, grid)

    def least(theta: Array) -> Array:
        return grid[fitted.curve.predict(theta, at).argmin(axis=1)]

    found = fitted.estimate("best", least)
    span = found["best_interval"] or [found["best"]] * 2
    return found | {
        "alone": found["best"] in (0, 1),
        "ends": [float(grid[0]), float(grid[-1])], "N": at["n_params"][0], "D": at["tokens"][0],
        "inside": bool(grid[0] < found["best"] < grid[-1]), "sure": bool(grid[0] < span[0] and span[1] < grid[-1]),
    }  # fmt: skip


def beyond_tried(fitted: CurveFit, runs: Runs) -> list[str]:
    """Warn of a ratio of least loss, at the size and tokens of the largest run, that lies outside those tried."""
    grid, low, high = np.linspace(0, 1, _POINTS), float(runs["ratio"].min()), float(runs["ratio"].max())
    best = float(grid[fitted.predict(_at_largest(runs, grid)).argmin()])
    if low - grid[1] < best < high + grid[1]:
        return []
    side = "below" if best < low else "above"
    return [
        f"edge minimum: the law has its least loss at r = {best:.3g}, outside the ratios tried ({low:.3g} to "
        f"{high:.3g}): add runs at ratios {side} them before one is chosen"
    ]


LAW = formula_law(
    "hybrid-ratio",
    "L = E + A(r) N^-alpha + B(r) D^-beta, A(r) = A exp(A1 r + A2 r^2), B(r) alike: r is the share of attention layers",
    loss,
    columns=("n_params", "tokens", "ratio"),
    bounds={
        "E": (0.0, 10.0),
        "A": (1e-4, 10.0),
        "A1": (-5.0, 5.0),
        "A2": (-5.0, 5.0),
        "alpha": (0.0, 2.0),
        "B": (1e-4, 10.0),
        "B1": (-5.0, 5.0),
        "B2": (-5.0, 5.0),
        "beta": (0.0, 2.0),
    },
    log_scale=("A", "B"),
    anchors={"A": ("n_params", "alpha"), "B": ("tokens", "beta")},
    size=lambda runs: runs["n_params"] * runs["tokens"],
    facts=best_ratio,
    across=("ratio", "n_params"),
    doubts=beyond_tried,
    template="hybrid-ratio",
)
