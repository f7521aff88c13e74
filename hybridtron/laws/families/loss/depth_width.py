"""What depth and width are worth: a loss that falls as a power of each (after Gemstones, 2502.06857).

L = E + A (width / 1024)^-alpha + B (depth / 24)^-beta + G (tokens / 1e10)^-gamma, so that A, B and G are nats per token
lost to a width of 1024, to 24 layers and to ten billion tokens. Also the worked example of a law that is one formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.laws.families.formula import formula_law

WIDTH, DEPTH, TOKENS = 1024.0, 24.0, 1e10


def loss(
    *, width: Any, depth: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, G: Any, gamma: Any
) -> Any:
    """Compute nats per token of a model of this width (hidden size) and depth (layers) trained on these tokens."""
    terms = ((A, alpha, width / WIDTH), (B, beta, depth / DEPTH), (G, gamma, tokens / TOKENS))
    return E + sum(size * np.exp(-power * np.log(ratio)) for size, power, ratio in terms)


LAW = formula_law(
    "depth-width",
    "L = E + A (width/1024)^-alpha + B (depth/24)^-beta + G (tokens/1e10)^-gamma: what depth and width are worth",
    loss,
    columns=("width", "depth", "tokens"),
    bounds={
        "E": (0.0, 10.0),
        "A": (1e-4, 10.0),
        "alpha": (0.0, 3.0),
        "B": (1e-4, 10.0),
        "beta": (0.0, 3.0),
        "G": (1e-4, 10.0),
        "gamma": (0.0, 3.0),
    },
    log_scale=("A", "B", "G"),
    size=lambda runs: runs["width"] ** 2 * runs["depth"] * runs["tokens"],
)
