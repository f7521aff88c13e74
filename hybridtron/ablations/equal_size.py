"""Adjust the key of a cell until its model is as large as the reference's."""

from __future__ import annotations

from collections.abc import Callable

from hybridtron.ablations.config import EqualConfig
from hybridtron.accounting.equal_size import Measure, fit_size, require_whole_number
from hybridtron.accounting.equal_size import measure as measure_model
from hybridtron.config.dotted import value_at
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig


def measure(config: RunConfig, of: Measure) -> float:
    """Return what is made equal, of a resolved config."""
    return measure_model(config.model, config.data.seq_len, of)


def equal_value(config: RunConfig, equal: EqualConfig, target: float, build: Callable[[int], RunConfig]) -> int | None:
    """Return the value of `equal.key` at which the model is nearest to `target`, within the tolerance; None where the
    config leaves it to a default that is right.

    `build(value)` is the run with that value; it raises UserError where the config does not allow it. The size must not
    fall while the key rises. Raises UserError, with the nearest sizes, where no allowed value is within the tolerance.
    """
    place = f"equal.key = {equal.key}"
    own = require_whole_number(place, value_at(config.model_dump(mode="json", serialize_as_any=True), equal.key))
    if measure(config, equal.of) == target:
        return own
    fit = fit_size(target, own, lambda value: measure(build(value), equal.of), equal.multiple_of)
    value = fit.within(equal.tolerance)
    if value is None:
        reason = fit.describe(equal.tolerance, equal.of, "the reference")
        raise UserError(f"{place}: {reason}; expected a larger equal.tolerance, or a key with finer steps")
    return value
