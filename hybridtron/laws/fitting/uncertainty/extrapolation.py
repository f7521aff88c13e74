"""Extrapolation: how a fit did on the largest runs held out, and how far a point lies outside the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridtron.laws.data.points import MAY_BE_ZERO
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Settings

FAR = 10.0
_COVERED = {  # benchmarks/laws.py --coverage: what 95 % intervals held at 10x, in how many per cent of how many sets
    "isoflop": ("compute-optimal size", 97, 200),
    "parametric": ("loss", 98, 50),
    "outer-exponent": ("loss", 97, 100),
    "hybrid-ratio": ("loss", 95, 100),
    "data-repetition": ("loss", 95, 100),
    "routed-moe": ("loss", 94, 100),
    "sparse": ("loss", 92, 100),
    "optimal-sparsity": ("loss", 98, 48),
    "fine-grained": ("loss", 94, 100),
    "precision": ("loss", 96, 100),
}


def extrapolation_warnings(law: str, values: Mapping[str, float], data: Mapping[str, np.ndarray]) -> list[str]:
    """Warn of each quantity of a point more than ten times outside the range of the data; of a share outside it."""
    warnings = []
    for name, value in values.items():
        if name not in data:
            continue
        low, high = float(data[name].min()), float(data[name].max())
        if name in MAY_BE_ZERO:
            if not low <= value <= high:
                warnings.append(
                    f"extrapolation: {name} = {value:.3g} lies outside the shares of the data ({low:.3g} to {high:.3g})"
                )
            continue
        factor = max(value / high, low / value)
        if factor > FAR:
            warnings.append(
                f"extrapolation: {name} = {value:.3g} lies {factor:.3g}x outside the data ({low:.3g} to {high:.3g}); "
                + _coverage(law)
            )
    return warnings


def _coverage(law: str) -> str:
    """Say how the intervals of a law fared in simulations at ten times the data."""
    if law not in _COVERED:
        return f"how often the intervals of {law} hold the truth beyond the data was not simulated"
    what, share, sets = _COVERED[law]
    return (
        f"simulated 95 % intervals of its {what} at 10x, with the law itself true, covered it in {share} % of {sets} "
        "sets; farther points were not simulated"
    )


def held_out(count: int, by: str, predicted: Array, observed: Array, largest: int, **more: Any) -> dict[str, Any]:
    """Return the extrapolation check of a fit: relative errors on the runs held out, and `more` about them.

    `largest` is the number of the largest run among them.
    """
    error = predicted / observed - 1
    factor = np.exp(np.abs(np.log(predicted / observed)))
    return {
        "held_out": count,
        "by": by,
        **more,
        "mean_relative_error": float(error.mean()),
        "mean_absolute_relative_error": float(np.abs(error).mean()),
        "worst_relative_error": float(error[np.argmax(np.abs(error))]),
        "median_factor": float(np.median(factor)),
        "largest_factor": float(factor.max()),
        "relative_error_at_largest": float(error[largest]),
        "observed": observed,
        "predicted": predicted,
    }


def not_held_out(settings: Settings, held: Mapping[str, Any] | None, there: str) -> list[str]:
    """Return a warning when runs were to be held out and are too few for that."""
    if held is not None or not settings.holdout:
        return []
    return [
        f"holdout: {settings.holdout} of {there} cannot be held out, too few would be left; extrapolation unchecked"
    ]
