"""The routed-moe law on its published runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hybridtron.laws import fit
from hybridtron.laws.families.moe import routed_moe

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    ("router", "published"),
    [
        ("S-Base", {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.85, "E_max": 314}),
        ("RL-R", {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.88, "E_max": 470}),
        ("Hash", {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.18, "E_max": 478}),
    ],
)
def test_routed_runs_give_the_published_law(router, published):
    """The coefficients of 2202.01169 lie in the intervals; their losses are the fitted ones, but for three digits."""
    others = [f"router_type!={other}" for other in ("S-Base", "RL-R", "Hash") if other != router]
    points = [{"N": n, "experts": experts} for n in (1e8, 1e9) for experts in (1.0, 16.0, 256.0)]
    found = fit(
        "routed-moe", DATA / "routed_moe.csv", where=["k=1", "routing_frequency=0.5", *others], predict=points,
        n_params_column="dense_parameter_count", loss_column="loss_validation", bootstrap=100, holdout=0,
    )  # fmt: skip
    assert all(low <= published[name] <= high for name, (low, high) in found.intervals.items())
    assert {"a", "b", "c", "d"} <= set(found.intervals)
    assert all(warning.startswith("not identified") for warning in found.warnings), "experts are no kinds of runs"
    for entry in found.predictions:
        expected = routed_moe.loss(n_params=entry["N"], experts=entry["experts"], **published)
        size, experts = np.log10([entry["N"], routed_moe.saturated(entry["experts"], 1.88, 470)])
        rounded = 0.0005 * (size + experts + size * experts + 1)  # of log10 L, by those of a, b, c and d
        assert abs(math.log10(entry["loss"] / expected)) < rounded
