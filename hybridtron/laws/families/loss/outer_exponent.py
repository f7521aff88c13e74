"""L = E + (A N^-alpha + B D^-beta)^gamma: the form of the xLSTM scaling laws (2510.02228).

gamma = 1 is the parametric law. The inner exponents alone decide the compute-optimal model size.
"""

from __future__ import annotations

from typing import Any

from hybridtron.laws.families.formula import formula_law


def loss(*, n_params: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, gamma: Any) -> Any:
    """Compute nats per token of a model of this size trained on these tokens."""
    return E + (A * n_params**-alpha + B * tokens**-beta) ** gamma


LAW = formula_law(
    "outer-exponent",
    "L = E + (A N^-alpha + B D^-beta)^gamma: the parametric law with an exponent around both terms",
    loss,
    columns=("n_params", "tokens"),
    bounds={
        "E": (0.0, 10.0),
        "A": (1e-6, 10.0),
        "alpha": (0.0, 2.0),
        "B": (1e-6, 10.0),
        "beta": (0.0, 2.0),
        "gamma": (0.1, 3.0),
    },
    log_scale=("A", "B", "gamma"),
    anchors={"A": ("n_params", "alpha"), "B": ("tokens", "beta")},
    tested={"gamma": ("E", "A", "alpha", "B", "beta")},
    size=lambda runs: runs["n_params"] * runs["tokens"],
    template="outer-exponent",
)
