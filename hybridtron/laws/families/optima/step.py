"""lr_opt = k N^a D^b and batch_opt = m D^c: the step law (Li et al., 2503.04715), from sweeps at several N and D.

Each cell of equal N and D has its optimum where a quadratic surface in log learning rate and log batch is least; the
two power laws go through the optima. The optimum is broad, so the lowest run of a cell is a poor estimate of it: the
sensitivity says what lowest runs would give, and averages over the runs whose loss is near the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.cells import cells
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.loss_minima import chosen_window
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import plural

AXES = ("learning_rate", "batch_tokens")
WINDOW = 8.0
OBJECTIVE = "squared residual of log learning rate and log batch, summed over cells"
_COEFFICIENTS = 6  # of a quadratic surface over two axes
_NEAR = 0.0025  # relative loss above the least of a cell that still counts as near
_NAMES = {"learning_rate": ("k", "a", "b"), "batch_tokens": ("m", "c")}  # factor, exponents of N and D (of D)


@dataclass(frozen=True)
class Line:
    """Least squares of log y on 1 and logarithms; `half` is the half width of 95 % of a combination of coefficients."""

    coefficients: Array  # [p]
    residual: Array  # [cells]
    half: Callable[[Array], float] | None


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; raises UserError for too few cells with an optimum inside their sweep."""
    window = chosen_window(settings, WINDOW)
    labels = cells(runs)
    parts = [runs.take(labels == label) for label in range(int(labels.max()) + 1)]
    optima = [find_optimum(part, window) for part in parts]
    kept = [(part, one) for part, one in zip(parts, optima, strict=True) if not isinstance(one, str)]
    warnings = [
        f"{one} (cell N = {part['n_params'][0]:.4g}, D = {part['tokens'][0]:.4g}, dropped)"
        for part, one in zip(parts, optima, strict=True)
        if isinstance(one, str)
    ]
    n, d = (np.array([part[name].mean() for part, _ in kept]) for name in ("n_params", "tokens"))
    designs = _designs(n, d)
    if len(kept) < 3 or np.linalg.svd(designs[AXES[0]] - designs[AXES[0]].mean(axis=0))[1][1] < 1e-6:
        raise UserError(
            f"{runs.source}: {len(kept)} of {len(parts)} cells of equal N and D have an optimum inside their sweep; "
            "expected at least three, of sizes and tokens that do not rise together"
            + (f" ({warnings[0]})" if warnings else "")
        )
    best = np.array([one for _, one in kept])  # log learning rate and log batch, [cells, 2]
    lines = _lines(designs, best)
    parameters, intervals = _parameters(lines), _intervals(lines)
    if intervals is None:
        warnings.append(f"few points: no intervals, {plural(len(kept), 'cell')}; at least 5 are needed")
    others = {
        name: _parameters(_lines(designs, np.array([_near(part, share) for part, _ in kept])))
        for name, share in (("lowest_run", 0.0), ("near_optimum_average", _NEAR))
    }
    predictions = []
    for point in settings.predict:
        entry, far = _predict(lines, point, n, d)
        predictions.append(entry)
        warnings += far
    return Fit(
        parameters=parameters, objective=sum(float(line.residual @ line.residual) for line in lines.values()),
        n_points=sum(len(part) for part, _ in kept), n_groups=len(kept), intervals=intervals,
        settings={"window": window, "objective": OBJECTIVE},
        sensitivity=others, predictions=predictions, warnings=warnings,
        search={"cells": dict(zip(("N", "D", *AXES), (n, d, *np.exp(best.T)), strict=True))},
        verdict=verdict("step", parameters, intervals, kept=len(kept), cells=len(parts), lowest=others["lowest_run"]),
        curves=[series for i, axis in enumerate(AXES) for series in _curves(axis, best[:, i], lines[axis].residual)],
    )  # fmt: skip


def find_optimum(part: Runs, window: float) -> Array | str:
    """Return log learning rate and log batch of least loss of a cell, [2], or why there is none inside its sweep."""
    x = np.log(np.stack([part[axis] for axis in AXES], axis=1))  # [n, 2]
    lowest = x[int(np.argmin(part["loss"]))]
    inside = (np.abs(x - lowest) <= math.log(window) + 1e-9).all(axis=1)
    if inside.sum() < _COEFFICIENTS or any(len(np.unique(x[inside, i].round(9))) < 3 for i in (0, 1)):
        return f"few points: {plural(int(inside.sum()), 'run')} within a factor {window:g} of the lowest"
    u, v = (x[inside] - lowest).T
    design = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    c = np.linalg.lstsq(design, part["loss"][inside], rcond=None)[0]
    bend = np.array([[2 * c[3], c[4]], [c[4], 2 * c[5]]])
    if np.linalg.eigvalsh(bend).min() <= 0:
        return "edge minimum: the loss has no minimum inside the sweep"
    optimum = np.asarray(lowest - np.linalg.solve(bend, c[1:3]))
    if (optimum <= x.min(axis=0)).any() or (optimum >= x.max(axis=0)).any():
        return "edge minimum: the optimum lies beyond the values tried"
    return optimum


def _near(part: Runs, share: float) -> Array:
    """Return the mean of log learning rate and log batch over runs within a share of a cell's least loss, [2]."""
    near = part["loss"] <= part["loss"].min() * (1 + share)
    return np.array([np.log(part[axis][near]).mean() for axis in AXES])


def _designs(n: Any, d: Any) -> dict[str, Array]:
    """Return what each axis depends on: 1, log N, log D for the learning rate and 1, log D for the batch."""
    one, size, tokens = np.ones_like(n), np.log(n), np.log(d)
    return {AXES[0]: np.stack([one, size, tokens], axis=1), AXES[1]: np.stack([one, tokens], axis=1)}


def _lines(designs: Mapping[str, Array], optima: Array) -> dict[str, Line]:
    return {axis: _line(designs[axis], optima[:, i]) for i, axis in enumerate(AXES)}


def _line(design: Array, y: Array) -> Line:
    coefficients = np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], dtype=np.float64)
    residual, freedom = y - design @ coefficients, len(y) - design.shape[1]
    if freedom < 2:
        return Line(coefficients, residual, None)
    covariance = np.linalg.pinv(design.T @ design) * float(residual @ residual) / freedom
    t = float(stdtrit(freedom, 0.975))
    return Line(coefficients, residual, lambda weights: t * math.sqrt(max(float(weights @ covariance @ weights), 0.0)))


def _parameters(lines: Mapping[str, Line]) -> dict[str, float]:
    values = {name: v for axis, line in lines.items() for name, v in zip(_NAMES[axis], line.coefficients, strict=True)}
    return {name: math.exp(value) if name in "km" else float(value) for name, value in values.items()}


def _intervals(lines: Mapping[str, Line]) -> dict[str, list[float]] | None:
    spans = {}
    for axis, line in lines.items():
        for i, name in enumerate(_NAMES[axis]):
            if line.half is None:
                return None
            half = line.half(np.eye(len(line.coefficients))[i])
            ends = [float(line.coefficients[i] - half), float(line.coefficients[i] + half)]
            spans[name] = [math.exp(end) for end in ends] if name in "km" else ends
    return spans


def _predict(
    lines: Mapping[str, Line], point: Mapping[str, float], n: Array, d: Array
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Predict learning rate and batch at N and D; raises UserError for a point that does not give both."""
    full = points.complete(point, "step")
    if "N" not in full:
        raise UserError(f"predict = C={full['C']:g}: step predicts from N and D; expected two of N, D, C, M")
    entry: dict[str, Any] = dict(full)
    for axis, design in _designs(np.array([full["N"]]), np.array([full["D"]])).items():
        line, at = lines[axis], float(design[0] @ lines[axis].coefficients)
        half = None if line.half is None else line.half(design[0])
        span = None if half is None else [math.exp(at - half), math.exp(at + half)]
        entry |= {axis: math.exp(at), f"{axis}_interval": span}
    return entry, extrapolation_warnings("step", full, {"N": n, "D": d})


def _curves(axis: str, best: Array, residual: Array) -> list[Series]:
    quantity = {"learning_rate": "best learning rate", "batch_tokens": "best batch (tokens)"}[axis]
    axes: dict[str, Any] = {"x_label": f"{quantity} by the law", "y_label": f"{quantity} of the sweep", "y_log": True}
    law = np.exp(best - residual)
    ends = np.array([min(law.min(), np.exp(best.min())), max(law.max(), np.exp(best.max()))])
    return [
        Series(quantity, "cells", "points", law, np.exp(best), **axes),
        Series(quantity, "equal", "line", ends, ends, **axes),
    ]


LAW = Law(
    name="step",
    summary="lr_opt = k N^a D^b, batch_opt = m D^c: best learning rate and batch in tokens, from sweeps over N and D",
    columns=("n_params", "tokens", *AXES, "loss"),
    at_most={"batch_tokens": "tokens"},
    parameters=(*_NAMES["learning_rate"], *_NAMES["batch_tokens"]),
    fit=fit,
    options={"window": (WINDOW, "runs within this factor of a cell's lowest run are fitted; inf takes all")},
    ignores=("delta", "holdout", "bootstrap"),
)
