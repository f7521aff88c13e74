"""log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d: routed models (Clark et al. 2022, 2202.01169, eq. 7).

N is the size of the dense base model and E' the experts behind a saturating transform (eq. 8):
1/E' = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max. A dense run has one expert.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hybridtron.laws.families.formula import formula_law


def saturated(experts: Any, E_start: Any, E_max: Any) -> Any:
    """Compute E': E_start for a dense model, rising with the experts towards E_max."""
    return 1 / (1 / (experts - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max)


def loss(*, n_params: Any, experts: Any, a: Any, b: Any, c: Any, d: Any, E_start: Any, E_max: Any) -> Any:
    """Compute nats per token of a base model of this size with these experts, at one number of tokens."""
    size, routed = np.log10(n_params), np.log10(saturated(experts, E_start, E_max))
    return 10 ** (a * size + b * routed + c * size * routed + d)


LAW = formula_law(
    "routed-moe",
    "log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d: base size N, experts saturating from E_start to E_max",
    loss,
    columns=("n_params", "experts"),
    bounds={
        "a": (-0.5, 0.1),
        "b": (-0.6, 0.3),
        "c": (-0.05, 0.08),
        "d": (0.0, 3.0),
        "E_start": (1.0, 20.0),
        "E_max": (21.0, 1e5),
    },
    log_scale=("E_start", "E_max"),
    tested={"E_start": (), "E_max": ()},
    delta=math.inf,
    size=lambda runs: runs["n_params"],
    across=("experts", "n_params"),
)
