"""Distances between tensors of two devices."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

SMALLEST = 1e-12


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    exact = expected.detach().cpu().double()
    return float((actual.detach().cpu().double() - exact).norm() / exact.norm().clamp_min(SMALLEST))


def assert_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float) -> None:
    """Compare tensors by name; every distance that is too large, or not a number, is shown."""
    assert actual.keys() == expected.keys()
    found = {name: distance(actual[name], expected[name]) for name in expected}
    far = {name: value for name, value in found.items() if not value <= bound}
    assert far == {}, f"above {bound}: {far}"
