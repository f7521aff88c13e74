"""L = (a (active/total)^b + g) N_active^-alpha + B D^-beta + E: what inactive parameters are worth.

Frantar et al. (2309.08520, eq. 1, with 1 - S = active/total), there of pruned weights; the same form holds a mixture of
experts to its active and total parameters.
"""

from __future__ import annotations

from typing import Any

from hybridtron.laws.families.formula import formula_law


def loss(
    *, n_params: Any, active_params: Any, tokens: Any, a: Any, b: Any, g: Any, alpha: Any, B: Any, beta: Any, E: Any
) -> Any:
    """Compute nats per token of a model that uses `active_params` of its `n_params` for a token."""
    return (a * (active_params / n_params) ** b + g) * active_params**-alpha + B * tokens**-beta + E


LAW = formula_law(
    "sparse",
    "L = (a (active/N)^b + g) active^-alpha + B D^-beta + E: N parameters of which some are active",
    loss,
    columns=("n_params", "active_params", "tokens"),
    bounds={
        "a": (1e-4, 10.0),
        "b": (0.01, 4.0),
        "g": (1e-4, 10.0),
        "alpha": (0.0, 2.0),
        "B": (1e-4, 10.0),
        "beta": (0.0, 2.0),
        "E": (0.0, 10.0),
    },
    log_scale=("a", "b", "g", "B"),
    anchors={"a": ("active_params", "alpha"), "g": ("active_params", "alpha"), "B": ("tokens", "beta")},
    size=lambda runs: runs["active_params"] * runs["tokens"],
    across=("n_params", "active_params"),
    at_most={"active_params": "n_params"},
)
