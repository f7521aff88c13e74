"""L = E + A / N'^alpha + B / D'^beta: what tokens seen again are worth (Muennighoff et al. 2023, 2305.16264, eq. 5, 6).

D' = U + U R_D (1 - e^(-r_D / R_D)) with U unique tokens and r_D = D/U - 1 repetitions; N' likewise with r_N = N/U_N - 1
and the size U_N that is compute-optimal for U tokens, or N itself where it is smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.formula import formula_law
from hybridtron.laws.fitting.curves.curve import CurveFit
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.fitting.uncertainty.identifiability import profile
from hybridtron.laws.law import Settings

FLAT = 4.0  # ends of a range this far apart, as a factor, are a flat valley
_STEP = 0.1  # of log R_D and log R_N along their profiles


def loss(
    *, n_params: Any, tokens: Any, unique_tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, R_D: Any, R_N: Any
) -> Any:
    """Compute nats per token of a model trained on `tokens`, `unique_tokens` of them different."""
    unique = np.minimum(unique_tokens, tokens)
    balance = (alpha * A / (beta * B)) ** (1 / (alpha + beta))  # N = balance^((a+b)/a) D^(b/a) is compute-optimal
    enough = np.minimum(n_params, balance * (unique * balance) ** (beta / alpha))
    size, data = _effective(n_params, enough, R_N), _effective(tokens, unique, R_D)
    return E + A * size**-alpha + B * data**-beta


def _effective(whole: Any, once: Any, decay: Any) -> Any:
    return once * (1 + decay * -np.expm1(-(whole / once - 1) / decay))


def repetition_ranges(fitted: CurveFit, runs: Runs, settings: Settings) -> dict[str, Any]:
    """Return the range of R_D and of R_N within which the law fits as well within the noise, and which are flat."""
    problem = replace(fitted.curve.problem, delta=max(fitted.curve.problem.delta, fitted.noise / 2))
    labels = bootstrap.group_labels(runs, settings.group)
    spans = {
        name: [float(end) for end in np.exp(profile(problem, fitted.optimum.theta, labels, i, _STEP))]
        for i, name in enumerate(fitted.parameters)
        if name in ("R_D", "R_N")
    }
    return {"ranges": spans, "flat": [name for name, (low, high) in spans.items() if high > FLAT * low]}


LAW = formula_law(
    "data-repetition",
    "L = E + A/N'^alpha + B/D'^beta: D tokens, U of them different; R_D and R_N say how soon more stops to help",
    loss,
    columns=("n_params", "tokens", "unique_tokens"),
    bounds={
        "E": (0.0, 10.0),
        "A": (1e-4, 10.0),
        "alpha": (0.02, 2.0),
        "B": (1e-4, 10.0),
        "beta": (0.02, 2.0),
        "R_D": (0.1, 1e4),
        "R_N": (0.1, 1e4),
    },
    log_scale=("A", "B", "R_D", "R_N"),
    anchors={"A": ("n_params", "alpha"), "B": ("tokens", "beta")},
    tested={"R_D": (), "R_N": ()},
    size=lambda runs: runs["n_params"] * runs["tokens"],
    facts=repetition_ranges,
    across=("tokens", "unique_tokens"),
    at_most={"unique_tokens": "tokens"},
    template="data-repetition",
)
