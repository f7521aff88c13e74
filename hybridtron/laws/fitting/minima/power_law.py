"""Power laws through points, y = factor * x^exponent: straight lines of log y in log x, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings, held_out
from hybridtron.laws.result import Series


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
        names: public names of exponent and factor.
        x, y: the points it was fitted to, [K].
        exponent, factor: least squares of log y.
        spread: weights of exponent and log factor [2] -> interval of their sum, less its estimate; None when there are
            no intervals.
        widening: factor on the width of the intervals.
    """

    names: tuple[str, str]
    x: Array
    y: Array
    exponent: float
    factor: float
    spread: Callable[[Array], list[float]] | None
    widening: float = 1.0

    @property
    def parameters(self) -> dict[str, float]:
        """Exponent and factor by their public names."""
        return dict(zip(self.names, (self.exponent, self.factor), strict=True))

    @property
    def intervals(self) -> dict[str, list[float]]:
        """Intervals of the parameters; empty when refused."""
        if self.spread is None:
            return {}
        low, high = self._offsets(1.0, 0.0)
        return {self.names[0]: [self.exponent + low, self.exponent + high], self.names[1]: self.interval_at(1.0)}

    def at(self, x: Any) -> Any:
        """Return y at x."""
        return np.exp(math.log(self.factor) + self.exponent * np.log(x))

    def interval_at(self, x: float) -> Any:
        """Return the interval of `at`; None when refused."""
        if self.spread is None:
            return None
        low, high = self._offsets(math.log(x), 1.0)
        value = math.log(self.at(x))
        with np.errstate(over="ignore"):
            return np.exp([value + low, value + high]).tolist()

    def _offsets(self, of_exponent: float, of_log_factor: float) -> list[float]:
        assert self.spread is not None
        return [self.widening * end for end in self.spread(np.array([of_exponent, of_log_factor]))]

    def line(self, panel: str, symbol: str, beyond: float, axes: Mapping[str, Any]) -> Series:
        """Return the line with its band, drawn to `beyond` times the largest x."""
        x = np.geomspace(self.x.min(), self.x.max() * beyond, 60)
        ends = [self.interval_at(float(value)) for value in x] if self.spread is not None else []
        low, high = np.transpose(ends) if ends else (None, None)
        return Series(panel, f"{symbol}^{self.exponent:.3g}", "line", x, self.at(x), low=low, high=high, **axes)

    def hold_out(self, count: int, fewest: int, by: str) -> dict[str, Any] | None:
        """Compare the line through all but the `count` points of largest x with these points.

        Returns None when nothing is to be held out or fewer than `fewest` points would be left.
        """
        if count <= 0 or len(self.x) - count < fewest:
            return None
        order = np.argsort(self.x, kind="stable")
        x, y = np.log(self.x[order]), np.log(self.y[order])
        exponent, log_factor = (float(value) for value in fit_line(x[:-count], y[:-count]))
        predicted, observed = np.exp(log_factor + exponent * x[-count:]), self.y[order][-count:]
        below, above = (float(self.x[order][row]) for row in (-count - 1, -1))
        without = dict(zip(self.names, (exponent, math.exp(log_factor)), strict=True))
        return held_out(
            count,
            by,
            predicted,
            observed,
            count - 1,
            largest_fitted=below,
            largest_held_out=above,
            parameters_without=without,
        )


def predict(
    law: str, point: Mapping[str, float], symbol: str, unit: str, powers: Mapping[str, PowerLaw]
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Predict from one number (`symbol`, in `unit`) by each power law under its name; warn of a far extrapolation."""
    if set(point) != {symbol} or not point[symbol] > 0:
        raise UserError(f"predict = {dict(point)}: {law} predicts from {symbol} alone; expected {symbol}={unit}")
    x = point[symbol]
    entry: dict[str, Any] = {symbol: x}
    for name, power in powers.items():
        entry |= {name: power.at(x), f"{name}_interval": power.interval_at(x)}
    return entry, extrapolation_warnings(law, point, {symbol: next(iter(powers.values())).x})


def fit_line(x: Array, y: Array) -> tuple[Array, Array]:
    """Fit straight lines by least squares; x [K], y [..., K] -> slope and offset, each [...]."""
    centred = x - x.mean()
    slope = y @ centred / (centred @ centred)
    return slope, y.mean(axis=-1) - slope * x.mean()
