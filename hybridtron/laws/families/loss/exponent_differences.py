"""Whether architectures differ by an offset of the loss or by the slope of a term: exponents fitted to each alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridtron.laws.fitting.curves.curve import CurveFit
from hybridtron.laws.fitting.uncertainty import bootstrap

EXPONENTS = {"alpha": 3, "beta": 4}  # by their coordinates in the fit of one architecture
_PARAMETERS = 5  # of one architecture


def exponent_differences(
    alone: Mapping[str, CurveFit], reference: str, others: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Return for each architecture how its exponents differ from the reference's, with intervals and p.

    `alone` are the fits of the architectures, each resampled on its own.
    """
    differences = {}
    theirs = alone[reference]
    for name in others:
        mine = alone[name]
        entry: dict[str, Any] = {}
        groups = min(mine.n_groups, theirs.n_groups)
        for exponent, i in EXPONENTS.items():
            gap = mine.parameters[exponent] - theirs.parameters[exponent]
            span = p = None
            if mine.samples is not None and theirs.samples is not None:
                count = min(len(mine.samples), len(theirs.samples))
                rng = np.random.default_rng([seed, 3])
                spread = mine.samples[:count, i] - rng.permutation(theirs.samples[:count, i])
                span = bootstrap.interval(spread, groups, _PARAMETERS)
                p = bootstrap.p_value(gap, spread, groups, _PARAMETERS)
            weak = exponent in mine.weak | theirs.weak
            entry[exponent] = {"difference": gap, "interval": None if weak else span, "p": None if weak else p}
        differences[name] = entry
    return differences


def decide(differences: dict[str, dict[str, Any]]) -> None:
    """Add to each comparison whether an exponent differs at 5 %, over all comparisons (Holm 1979): its `kind`."""
    tests = [entry[exponent] for entry in differences.values() for exponent in EXPONENTS]
    known = sorted((test for test in tests if test["p"] is not None), key=lambda test: float(test["p"]))
    highest = 0.0
    for rank, test in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * test["p"]))
        test["p_holm"] = highest
    for entry in differences.values():
        adjusted = [entry[exponent].get("p_holm") for exponent in EXPONENTS]
        certain = [p for p in adjusted if p is not None]
        slope = bool(certain) and min(certain) < 0.05
        entry["kind"] = "slope" if slope else "undecided" if None in adjusted else "offset"
        entry["comparisons"] = len(known)
