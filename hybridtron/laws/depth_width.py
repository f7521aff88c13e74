"""L = E + A / width^alpha + B / depth^beta + G / tokens^gamma: what depth and width are worth (Gemstones, 2502.06857).

Also the worked example of a law that is one formula.
"""

from __future__ import annotations

from typing import Any

from hybridtron.laws.formula import formula_law


def loss(*, width: Any, depth: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, G: Any, gamma: Any) -> Any:
    """Loss of a model of this width (hidden size) and depth (layers) after these tokens, nats per token."""
    return E + A / width**alpha + B / depth**beta + G / tokens**gamma


LAW = formula_law(
    "depth-width",
    "L = E + A/width^alpha + B/depth^beta + G/tokens^gamma: what depth and width are worth at equal data",
    loss,
    columns=("width", "depth", "tokens"),
    bounds={
        "E": (1e-6, 10.0),
        "A": (1e-4, 1e6),
        "alpha": (0.0, 3.0),
        "B": (1e-4, 1e4),
        "beta": (0.0, 4.0),
        "G": (1e-3, 1e14),
        "gamma": (0.0, 2.0),
    },
    log_scale=("E", "A", "B", "G"),
    size=lambda runs: runs["width"] ** 2 * runs["depth"] * runs["tokens"],
)
