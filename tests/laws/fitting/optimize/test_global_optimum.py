"""On every public file the fit is not beaten by differential evolution on an objective written here."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import differential_evolution

from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import depth_width, overtraining, parametric
from hybridtron.laws.families.scores import downstream
from hybridtron.laws.fitting.minima.minima_fit import Axis, fit_minima
from hybridtron.laws.fitting.optimize.search import search

DATA = Path(__file__).parents[2] / "data"


def load(name: str, **rename: str) -> Runs:
    """A file of the data folder, with canonical columns taken from others."""
    with (DATA / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list] = {}
    for column in rows[0]:
        text = [row[column] for row in rows]
        try:
            columns[column] = [float(cell) for cell in text]
        except ValueError:
            columns[column] = text
    return Runs.of(name, **columns, **{canonical: columns[column] for canonical, column in rename.items()})


def huber_sum(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    loss = 0.5 * residual**2 if math.isinf(delta) else np.where(size < delta, 0.5 * size**2, delta * (size - delta / 2))
    return loss.sum(axis=0)


def evolve(loss: Callable[[np.ndarray], np.ndarray], bounds: list[tuple[float, float]]) -> float:
    """Least value of a vectorised objective [p, S] -> [S], by differential evolution and its polish."""
    found = differential_evolution(
        loss, bounds, seed=1, popsize=12, maxiter=400, tol=1e-10, vectorized=True, updating="deferred", polish=False
    )
    return float(found.fun)


def not_beaten(found: float, evolved: float) -> None:
    assert found <= evolved * (1 + 1e-6)
    assert evolved <= found * 1.5, "the independent search came nowhere near: it proves nothing"


SELECTIONS = [
    ("chinchilla_fig4.csv", None, None),
    ("chinchilla_fig4.csv", "in_fit", 1),
    ("chinchilla_isoflop.csv", None, None),
    *[("porian_isoflop.csv", "experiment", name) for name in (
        "1_kaplan_repro", "2_count_last_layer_flops", "3_correct_warmup", "4_cosine_decay", "5_tuned_opt_no_decay")],
    *[("marin_misfitting_isoflop.csv", "dataset", name) for name in ("comma", "dclm", "nemotron", "fineweb_c4")],
    ("gadre_overtraining.csv", None, None),
    ("gemstones.csv", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "value"), SELECTIONS)
def test_parametric(name, column, value):
    runs = load(name, **({"loss": "loss_c4_val"} if "gadre" in name else {}))
    if column is not None:
        runs = runs.where(column, value)
    x, y, target = np.log(runs["n_params"]), np.log(runs["tokens"]), np.log(runs["loss"])
    x, y = (x - x.mean())[:, None], (y - y.mean())[:, None]

    def loss(theta):
        e, a, b, alpha, beta = theta[:, None, :]
        value = np.log(np.exp(e) + np.exp(a - alpha * x) + np.exp(b - beta * y))
        return huber_sum(value - target[:, None], 1e-3)

    curve = parametric.build(runs, 1e-3)
    found = search(curve.problem, curve.starts)
    not_beaten(found.objective, evolve(loss, [(-14, 3)] * 3 + [(0, 3)] * 2))


def test_overtraining():
    runs = load("gadre_overtraining.csv", loss="loss_c4_val")
    c = np.log(6 * runs["n_params"] * runs["tokens"])[:, None]
    m = np.log(runs["tokens"] / runs["n_params"])[:, None]
    c, m = c - c.mean(), m - m.mean()

    def loss(theta):
        e, a, b, eta = theta[:, None, :]
        return huber_sum(
            np.exp(e) + np.exp(a + eta * (m - c)) + np.exp(b - eta * (m + c)) - runs["loss"][:, None], np.inf
        )

    curve = overtraining.build(runs, np.inf)
    not_beaten(search(curve.problem, curve.starts).objective, evolve(loss, [(-14, 3)] * 3 + [(0, 2)]))


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("gadre_overtraining.csv", {"loss": "loss_c4_val", "error": "err_avg17"}),
        ("gadre_overtraining.csv", {"loss": "loss_c4_val", "error": "err_avg46"}),
        ("gemstones_downstream.csv", {"error": "avg_err"}),
    ],
)
def test_downstream(name, rename):
    runs = load(name, **rename)

    def loss(theta):
        epsilon, log_k, gamma = theta[:, None, :]
        u = (runs["loss"] - runs["loss"].mean())[:, None]
        return huber_sum(epsilon - np.exp(log_k - gamma * u) - runs["error"][:, None], np.inf)

    curve = downstream.build(runs, np.inf)
    not_beaten(search(curve.problem, curve.starts).objective, evolve(loss, [(0, 10), (-14, 3), (1e-4, 50)]))


def test_depth_width():
    runs = load("gemstones.csv")
    x = [np.log(s / runs[n])[:, None] for s, n in ((1024, "width"), (24, "depth"), (1e10, "tokens"))]

    def loss(theta):
        e, a, alpha, b, beta, g, gamma = theta[:, None, :]
        value = np.exp(e) + np.exp(a + alpha * x[0]) + np.exp(b + beta * x[1]) + np.exp(g + gamma * x[2])
        return huber_sum(np.log(value) - np.log(runs["loss"])[:, None], 1e-3)

    curve = depth_width.LAW.build(runs, 1e-3)
    size = (math.log(1e-4), math.log(10.0))
    found = search(curve.problem, curve.starts).objective
    not_beaten(found, evolve(loss, [size, size, (0, 3), size, (0, 3), size, (0, 3)]))


@pytest.mark.parametrize(("name", "column", "value"), [s for s in SELECTIONS if "isoflop" in s[0]])
def test_isoflop_parabolas_and_line(name, column, value):
    """Every kept minimum is the parabola of numpy's own fit, and the line its fit through the minima."""
    runs = load(name) if column is None else load(name).where(column, value)
    for axis in ("n_params", "tokens"):
        found = fit_minima(runs, Settings(bootstrap=0), Axis(axis, "a", "k", axis), 4.0)
        total = 0.0
        for minimum in found.kept:
            x, y = np.log(runs[axis][minimum.rows]), runs["loss"][minimum.rows]
            fitted = np.polynomial.Polynomial.fit(x, y, 2)
            total += float(((fitted(x) - y) ** 2).sum())
            assert float(fitted.deriv().roots()[0]) == pytest.approx(math.log(minimum.x), rel=1e-6)
        assert found.objective <= total * (1 + 1e-6)
        slope = np.polyfit(np.log(found.power.x), np.log([minimum.x for minimum in found.kept]), 1)[0]
        assert found.power.exponent == pytest.approx(slope, rel=1e-6)


def test_state_optimal_line():
    found = fit("state-optimal", load("state_optimal_synthetic.csv"), Settings(bootstrap=0))
    points = found.search["compute_optimal_points"]
    x, y = np.log([p["state"] for p in points]), np.array([p["log_perplexity"] for p in points])

    def loss(theta):
        return ((theta[0] * (x - x.mean())[:, None] + theta[1] - y[:, None]) ** 2).sum(axis=0)

    not_beaten(found.objective, evolve(loss, [(-2, 2), (0, 10)]))
