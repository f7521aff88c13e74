"""Synthetic runs whose law is known, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import depth_width

Seed = int | Sequence[int]
SIX_BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20, 3e20)
STATE_BUDGETS = (4e18, 8e18, 2e19, 4e19, 8e19)
NOISES = (0.001, 0.002, 0.005, 0.01)  # relative standard deviations of the loss
PARAMETRIC = {"E": 1.8, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.36}
OVERTRAINING = {"E": 1.8, "a": 150.0, "b": 250.0, "eta": 0.13}
DEPTH_WIDTH = {"E": 1.7, "A": 0.5, "alpha": 0.6, "B": 0.2, "beta": 0.8, "G": 0.35, "gamma": 0.4}
DOWNSTREAM = {"epsilon": 0.85, "k": 2.1, "gamma": 0.76}


def scattered_sizes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.exp(rng.uniform(np.log(5e7), np.log(1e10), n))
    return sizes, sizes * np.exp(rng.uniform(np.log(3), np.log(300), n))


def parametric_loss(n_params: Any, tokens: Any, E: float, A: float, B: float, alpha: float, beta: float) -> Any:
    return E + A / n_params**alpha + B / tokens**beta


def parametric_runs(seed: Seed, noise: float, n: int = 100, truth: dict[str, float] = PARAMETRIC) -> Runs:
    rng = np.random.default_rng(seed)
    sizes, tokens = scattered_sizes(rng, n)
    loss = parametric_loss(sizes, tokens, **truth) * np.exp(noise * rng.standard_normal(n))
    return Runs.of(n_params=sizes, tokens=tokens, loss=loss)


def overtraining_runs(seed: Seed, noise: float, n: int = 50, truth: dict[str, float] = OVERTRAINING) -> Runs:
    rng = np.random.default_rng(seed)
    sizes, tokens = scattered_sizes(rng, n)
    flops, ratio, p = 6 * sizes * tokens, tokens / sizes, truth
    loss = p["E"] + (p["a"] * ratio ** p["eta"] + p["b"] * ratio ** -p["eta"]) * flops ** -p["eta"]
    return Runs.of(n_params=sizes, tokens=tokens, loss=loss * np.exp(noise * rng.standard_normal(n)))


def downstream_runs(seed: Seed, noise: float, n: int = 40) -> Runs:
    rng = np.random.default_rng(seed)
    loss = rng.uniform(2.2, 5.0, n)
    error = DOWNSTREAM["epsilon"] - DOWNSTREAM["k"] * np.exp(-DOWNSTREAM["gamma"] * loss)
    return Runs.of(loss=loss, error=error + noise * rng.standard_normal(n))


def isoflop_runs(
    seed: Seed, noise: float, budgets: Sequence[float] = SIX_BUDGETS, sizes: int = 8, shift: ArrayLike = 0.0,
    truth: dict[str, float] = PARAMETRIC,
) -> Runs:  # fmt: skip
    """Sizes spread by a factor 4 around the optimum of a parametric law (moved by exp(shift), one for each budget)."""
    rng = np.random.default_rng(seed)
    shifts = np.broadcast_to(shift, len(budgets))
    flops, n_params = [], []
    for budget, moved in zip(budgets, shifts, strict=True):
        best = isoflop_truth(truth)["k_N"] * budget ** isoflop_truth(truth)["a"] * np.exp(moved)
        n_params.append(best * np.geomspace(0.25, 4.0, sizes))
        flops.append(np.full(sizes, budget))
    c, n = np.concatenate(flops), np.concatenate(n_params)
    tokens = c / (6 * n)
    loss = parametric_loss(n, tokens, **truth) * np.exp(noise * rng.standard_normal(len(n)))
    return Runs.of(n_params=n, tokens=tokens, flops=c, loss=loss)


def isoflop_truth(p: dict[str, float] = PARAMETRIC) -> dict[str, float]:
    total = p["alpha"] + p["beta"]
    factor = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / total)
    a, b = p["beta"] / total, p["alpha"] / total
    return {"a": a, "b": b, "k_N": factor / 6**a, "k_D": 1 / (factor * 6**b)}


def state_runs(
    seed: Seed, noise: float, budgets: Sequence[float] = STATE_BUDGETS, c: float = -0.28, G: float = 900.0
) -> Runs:
    """Three architectures, one compute-optimal run for each budget."""
    rng = np.random.default_rng(seed)
    flops = np.tile(budgets, 3)
    state = np.repeat([3e5, 2e6, 1.5e7], len(budgets)) * (flops / 4e18) ** 0.4
    loss = np.log(G * state**c) + noise * rng.standard_normal(len(flops))
    arch = np.repeat(["conv", "recurrent", "attention"], len(budgets))
    return Runs.of(flops=flops, total_state=state, loss=loss, arch=list(arch))


def depth_width_runs(seed: Seed, noise: float, n: int = 120) -> Runs:
    rng = np.random.default_rng(seed)
    width, depth = (np.exp(rng.uniform(np.log(low), np.log(high), n)) for low, high in ((256, 4096), (4, 80)))
    tokens = np.exp(rng.uniform(np.log(2e9), np.log(3e11), n))
    loss = depth_width.loss(width=width, depth=depth, tokens=tokens, **DEPTH_WIDTH)
    return Runs.of(width=width, depth=depth, tokens=tokens, loss=loss * np.exp(noise * rng.standard_normal(n)))


def proxy_runs(seed: Seed, correlation: float, n: int) -> Runs:
    rng = np.random.default_rng(seed)
    score, other = rng.standard_normal((2, n))
    loss = correlation * score + np.sqrt(1 - correlation**2) * other
    return Runs.of(score=score, loss=3 + 0.1 * loss)


def learning_rate_runs(seed: Seed, noise: float, s: float = -0.12, k: float = 0.3) -> Runs:
    rng = np.random.default_rng(seed)
    budgets = np.repeat([1e17, 1e18, 1e19, 1e20], 7)
    rate = k * budgets**s * np.tile(np.geomspace(1 / 6, 6, 7), 4)
    parabolas = 3 - 0.1 * np.log10(budgets / 1e17) + 0.05 * np.log(rate / (k * budgets**s)) ** 2
    return Runs.of(learning_rate=rate, flops=budgets, loss=parabolas * np.exp(noise * rng.standard_normal(28)))


def one_sweep(seed: Seed, noise: float, rates: int = 9, best: float = 0.003) -> Runs:
    """A learning-rate sweep of one budget."""
    rng = np.random.default_rng(seed)
    rate = 1.3 * best * np.geomspace(1 / 6, 6, rates)
    loss = (3 + 0.05 * np.log(rate / best) ** 2) * np.exp(noise * rng.standard_normal(rates))
    return Runs.of(learning_rate=rate, flops=np.full(rates, 1e18), loss=loss)


BUDGETS = {"5x6": (1e18, 3e18, 1e19, 3e19, 1e20), "9x6": tuple(np.geomspace(1e18, 1e21, 9))}


def noisy_isoflop(seed: Seed, regime: str, budgets: str, noise: float) -> Runs:
    """Six sizes a budget under noise that is not the same for all rows.

    Regimes: `equal`; `rising` (four times as large at the largest budget as at the smallest); `falling`; `small sizes`
    (three times as large at the smallest size); `outliers` (six times as large in one row of twenty).
    """
    rng = np.random.default_rng(seed)
    count = len(BUDGETS[budgets])
    draw = rng.standard_normal((count, 6))
    draw *= {
        "equal": np.ones((1, 1)),
        "rising": np.geomspace(0.5, 2, count)[:, None],
        "falling": np.geomspace(2, 0.5, count)[:, None],
        "small sizes": np.geomspace(1.7, 0.57, 6)[None],
        "outliers": np.where(rng.random((count, 6)) < 0.05, 6.0, 1.0),
    }[regime]
    runs = isoflop_runs(seed, 0.0, BUDGETS[budgets], 6)
    return runs.with_column("loss", runs["loss"] * np.exp(noise * draw.ravel()))


def narrow_runs(seed: Seed, noise: float, span: float = 6.0, n: int = 100) -> Runs:
    """Runs of the parametric law whose sizes span this factor only."""
    rng = np.random.default_rng(seed)
    sizes = 1e9 * np.exp(rng.uniform(-0.5, 0.5, n) * np.log(span))
    tokens = sizes * np.exp(rng.uniform(np.log(3), np.log(300), n))
    loss = parametric_loss(sizes, tokens, **PARAMETRIC) * np.exp(noise * rng.standard_normal(n))
    return Runs.of(n_params=sizes, tokens=tokens, loss=loss)


def checkpoint_runs(seed: Seed, noise: float, count: int = 40, rows: int = 6) -> Runs:
    """Checkpoints of runs of the parametric law (column `lineage`); nine tenths of the variance is one draw a run."""
    rng = np.random.default_rng(seed)
    sizes, tokens = scattered_sizes(rng, count)
    n, d = np.repeat(sizes, rows), (tokens[:, None] * np.geomspace(0.1, 1, rows)).ravel()
    shared, own = np.repeat(rng.standard_normal(count), rows), rng.standard_normal(count * rows)
    loss = parametric_loss(n, d, **PARAMETRIC) * np.exp(noise * (np.sqrt(0.9) * shared + np.sqrt(0.1) * own))
    return Runs.of(n_params=n, tokens=d, loss=loss, lineage=np.repeat(np.arange(count), rows))


def checkpoint_isoflop(seed: Seed, noise: float, budgets: str) -> Runs:
    """Runs of one size each that pass through all budgets; nine tenths of the variance is one draw a run."""
    rng = np.random.default_rng(seed)
    flops = np.array(BUDGETS[budgets])
    best = isoflop_truth()["k_N"] * flops ** isoflop_truth()["a"]
    sizes = np.geomspace(best[0] / 4, best[-1] * 4, round(np.log(best[-1] / best[0] * 16) / np.log(1.7)))
    near = np.abs(np.log(sizes / best[:, None])) < np.log(4.5)  # [budgets, sizes]
    row, run = np.nonzero(near)
    n, c = sizes[run], flops[row]
    shared, own = rng.standard_normal(len(sizes))[run], rng.standard_normal(len(run))
    draw = np.sqrt(0.9) * shared + np.sqrt(0.1) * own
    loss = parametric_loss(n, c / (6 * n), **PARAMETRIC) * np.exp(noise * draw)
    return Runs.of(n_params=n, tokens=c / (6 * n), flops=c, loss=loss, lineage=run)
