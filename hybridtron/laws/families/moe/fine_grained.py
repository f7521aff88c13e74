"""L = (g G^-gamma + a) N^-alpha + b D^-beta + E: experts cut into G parts (Krajewski et al., 2402.07871, eq. 6)."""

from __future__ import annotations

from typing import Any

from hybridtron.laws.families.formula import formula_law


def loss(
    *, n_params: Any, granularity: Any, tokens: Any, g: Any, gamma: Any, a: Any, alpha: Any, b: Any, beta: Any, E: Any
) -> Any:
    """Compute nats per token of a mixture of experts of this granularity at a fixed share of active parameters."""
    return (g * granularity**-gamma + a) * n_params**-alpha + b * tokens**-beta + E


LAW = formula_law(
    "fine-grained",
    "L = (g G^-gamma + a) N^-alpha + b D^-beta + E: experts of granularity G",
    loss,
    columns=("n_params", "granularity", "tokens"),
    bounds={
        "g": (1e-4, 10.0),
        "gamma": (0.01, 4.0),
        "a": (1e-4, 10.0),
        "alpha": (0.0, 2.0),
        "b": (1e-4, 10.0),
        "beta": (0.0, 2.0),
        "E": (0.0, 10.0),
    },
    log_scale=("g", "gamma", "a", "b"),
    anchors={"g": ("n_params", "alpha"), "a": ("n_params", "alpha"), "b": ("tokens", "beta")},
    size=lambda runs: runs["n_params"] * runs["tokens"],
    across=("granularity", "n_params"),
)
