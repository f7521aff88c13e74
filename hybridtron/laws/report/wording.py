"""Sentences that several verdicts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.laws.families.law import Settings


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def interval_sentence(what: str, value: float, interval: list[float] | None) -> str:
    """'what = value (95 % interval low to high).', or without the interval when there is none."""
    if interval is None:
        return f"{what} = {number(value)} (no interval)."
    return f"{what} = {number(value)} (95 % interval {number(interval[0])} to {number(interval[1])})."


def predicted(point: Mapping[str, Any]) -> str:
    """'N 7e+10, loss 1.97 (1.95 to 2)': the numbers of a prediction, each with its interval where it has one."""
    words = []
    for name, value in point.items():
        if isinstance(value, float):
            span = point.get(f"{name}_interval")
            words.append(f"{name} {number(value)}" + (f" ({number(span[0])} to {number(span[1])})" if span else ""))
    return ", ".join(words)


def not_held_out(settings: Settings, held: Mapping[str, Any] | None, there: str) -> list[str]:
    """A warning when held-out runs were asked for and could not be held out."""
    if held is not None or not settings.holdout:
        return []
    return [
        f"holdout: {settings.holdout} of {there} cannot be held out, too few would be left; extrapolation unchecked"
    ]


def held_out_sentence(held: Mapping[str, Any] | None, quantity: str) -> list[str]:
    """What the extrapolation check says, as a list of at most one sentence."""
    if held is None:
        return ["Extrapolation was not checked: no runs were held out."]
    factor = held["largest_held_out"] / held["largest_fitted"]
    count = held["held_out"]
    which = "the largest, the law predicts its" if count == 1 else f"the {count} largest, the law predicts their"
    return [
        f"Fitted without {which} {quantity} to "
        f"{100 * held['mean_absolute_relative_error']:.2g} % on average, {factor:.3g}x beyond the data it saw."
    ]
