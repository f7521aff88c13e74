"""L = E + a N^-alpha + b D^-beta + c (1-S)^-lam + d (1-S)^-delta N^-gamma: sparsity S of mixtures of experts.

Abnar et al. (2501.12370, eq. 6; `lam` is their lambda, `E` their e): N counts all parameters, S the share of experts
that a token leaves out, here 1 - active/N. They find lambda below zero.
"""

from __future__ import annotations

from typing import Any

from hybridtron.laws.families.formula import formula_law


def loss(
    *, n_params: Any, active_params: Any, tokens: Any, E: Any, a: Any, alpha: Any, b: Any, beta: Any, c: Any, lam: Any,
    d: Any, delta: Any, gamma: Any,
) -> Any:  # fmt: skip
    """Compute nats per token of a model that uses `active_params` of its `n_params` for a token."""
    used = active_params / n_params
    size = a * n_params**-alpha + d * used**-delta * n_params**-gamma
    return E + size + b * tokens**-beta + c * used**-lam


LAW = formula_law(
    "optimal-sparsity",
    "L = E + a N^-alpha + b D^-beta + c (1-S)^-lam + d (1-S)^-delta N^-gamma: N parameters, 1-S = active/N",
    loss,
    columns=("n_params", "active_params", "tokens"),
    bounds={
        "E": (0.0, 10.0),
        "a": (1e-4, 10.0),
        "alpha": (0.0, 2.0),
        "b": (1e-4, 10.0),
        "beta": (0.0, 2.0),
        "c": (1e-3, 10.0),
        "lam": (-1.0, 1.0),
        "d": (1e-4, 10.0),
        "delta": (0.0, 2.0),
        "gamma": (0.0, 2.0),
    },
    log_scale=("a", "b", "c", "d"),
    anchors={"a": ("n_params", "alpha"), "b": ("tokens", "beta"), "d": ("n_params", "gamma")},
    size=lambda runs: runs["active_params"] * runs["tokens"],
    across=("active_params", "n_params"),
    at_most={"active_params": "n_params"},
)
