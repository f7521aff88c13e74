"""The isoflop law: exponents of parameters and tokens on their own."""

from __future__ import annotations

import pytest

from hybridtron.laws import Settings, fit
from tests.laws import planted


def test_isoflop_fits_tokens_on_their_own():
    """With 2 N D FLOPs instead of 6 N D budgets, and a cost that grows with the budget, b is not 1 - a."""
    runs = planted.isoflop_runs(1, 0.0)
    padded = runs.with_column("tokens", runs["tokens"] * (runs["flops"] / 1e18) ** -0.05)
    found = fit("isoflop", padded, Settings(bootstrap=0)).parameters
    assert found["a"] + found["b"] == pytest.approx(0.95, abs=0.005)
