"""Sentences that the verdicts of several laws share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.laws.families.law import Settings
from hybridtron.reporting.numbers import interval, significant


def interval_sentence(what: str, value: float, ends: list[float] | None) -> str:
    """Return 'what = value (95 % interval low to high).', or say that there is no interval."""
    span = f"95 % interval {interval(ends)}" if ends else "no interval"
    return f"{what} = {significant(value)} ({span})."


def predicted(point: Mapping[str, Any]) -> str:
    """Return the numbers of a prediction, each with its interval where it has one: N 7e+10, loss 1.97 (1.95 to 2)."""
    words = []
    for name, value in point.items():
        if isinstance(value, float):
            span = point.get(f"{name}_interval")
            words.append(f"{name} {significant(value)}" + (f" ({interval(span)})" if span else ""))
    return ", ".join(words)


def not_held_out(settings: Settings, held: Mapping[str, Any] | None, there: str) -> list[str]:
    """Return a warning when runs were to be held out and are too few for that."""
    if held is not None or not settings.holdout:
        return []
    return [
        f"holdout: {settings.holdout} of {there} cannot be held out, too few would be left; extrapolation unchecked"
    ]


def held_out_sentence(held: Mapping[str, Any] | None, quantity: str) -> list[str]:
    """Return one sentence on the result of the extrapolation check, in a list."""
    if held is None:
        return ["Extrapolation was not checked: no runs were held out."]
    factor = held["largest_held_out"] / held["largest_fitted"]
    count = held["held_out"]
    which = "the largest, the law predicts its" if count == 1 else f"the {count} largest, the law predicts their"
    return [
        f"Fitted without {which} {quantity} to "
        f"{100 * held['mean_absolute_relative_error']:.2g} % on average, {factor:.3g}x beyond the data it saw."
    ]
