"""The cross-check of isoflop: how far parabolas miss a law that is known, at the sizes and budgets of the data.

A parabola in log N is symmetric about its minimum, and the loss at fixed compute is not unless alpha = beta. The
minimum of the parabola is therefore off by an amount that depends on the sizes tried (Czech et al. 2026, 2603.22339).
The parametric law fitted to the same rows says how much: it gives noiseless losses at these sizes, with tokens
C / (6 N), and its optimum is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridtron.laws.data.points import FLOPS_PER_PARAMETER_TOKEN
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import parametric
from hybridtron.laws.fitting.minima.budgets import split_budgets
from hybridtron.laws.fitting.minima.minima_fit import Axis
from hybridtron.laws.fitting.minima.parabolas import refit
from hybridtron.laws.fitting.optimize.search import quick_search
from hybridtron.reporting.numbers import significant

_FEWEST = 12  # rows for five parameters
_TERMS = (1, 2)  # coordinates of the sizes A and B
Found = tuple[dict[str, Any], list[str], list[str]]


def parabola_bias(
    runs: Runs, axes: Mapping[str, Axis], window: float, intervals: Mapping[str, Sequence[float]],
    budgets: Sequence[float],
) -> Found:  # fmt: skip
    """Return the entry of `cross_checks`, sentences of the verdict and warnings; nothing where there is no such law.

    Args:
        intervals: of the fit; a bias of more than half of an interval's half-width is warned of.
        budgets: compute asked for.
    """
    curve = parametric.build(runs, parametric.DELTA)
    if len(runs) < _FEWEST or curve.undetermined:
        return {}, [], []
    theta = quick_search(curve.problem, curve.starts)
    vanished = any(parametric.POWERS.vanishes(theta, curve.problem, term) for term in _TERMS)
    law = {name: float(value[0]) for name, value in curve.public(theta[None]).items()}
    nominal = np.empty(len(runs))
    for budget, rows in split_budgets(runs["flops"]):
        nominal[rows] = budget
    at = {"n_params": runs["n_params"], "tokens": nominal / (FLOPS_PER_PARAMETER_TOKEN * runs["n_params"])}
    simulated = runs.with_column("flops", nominal).with_column("tokens", at["tokens"])
    found = refit(axes, simulated.with_column("loss", curve.predict(theta[None], at)[0]), window)
    if vanished or not found:
        return {}, [], []
    alpha, beta = law["alpha"], law["beta"]
    n, d, _ = parametric.compute_optimal(law, 1.0)
    closed = {"a": beta / (alpha + beta), "b": alpha / (alpha + beta), "k_N": float(n), "k_D": float(d)}
    largest = float(nominal.max())
    optima = []
    for flops in dict.fromkeys([largest, 10 * largest, *budgets]):
        n, d, _ = parametric.compute_optimal(law, flops)
        by_parabolas = {"N": found["k_N"] * flops ** found["a"], "D": found["k_D"] * flops ** found["b"]}
        ratios = {"N_ratio": by_parabolas["N"] / float(n), "D_ratio": by_parabolas["D"] / float(d)}
        optima.append({"C": flops, **by_parabolas, "N_of_law": float(n), "D_of_law": float(d), **ratios})
    bias = {name: found[name] - closed[name] for name in ("a", "b")}
    entry = {"law": law, "parameters_of_law": closed, "parabolas": found, "bias": bias, "compute_optimal": optima}
    sentence = (
        f"Parabolas on these sizes would give a = {significant(found['a'])} without noise, where the parametric law "
        f"fitted to the same rows has {significant(closed['a'])}; at 10 times the largest budget their model size "
        f"would be {optima[1]['N_ratio']:.3g} times the law's."
    )
    half = {name: (high - low) / 2 for name, (low, high) in intervals.items()}
    warnings = [
        f"parabola bias: without noise, parabolas on these sizes would give {name} = {found[name]:.4g} where the "
        f"parametric law of the same rows has {closed[name]:.4g}; the interval does not know of this"
        for name, off in bias.items()
        if abs(off) > half.get(name, 0.04) / 2
    ]
    return {"parabola_bias": entry}, [sentence], warnings
