"""Adjust one whole number of a run's config until its model is as large as a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hybridtron.ablations.axes import base_value
from hybridtron.ablations.config import EqualConfig
from hybridtron.accounting.describe import describe
from hybridtron.errors import UserError
from hybridtron.reporting.numbers import significant
from hybridtron.training.config import RunConfig

NEIGHBOURS = 256  # steps of the key that are tried for a value that the config allows
LARGEST_FACTOR = 2**12  # of the key's own value
LARGEST_UNITS = 2**20  # where the key has no value yet
WORDS = {
    "parameters": "parameters", "non_embedding": "parameters without embeddings", "flops": "forward FLOPs per token",
    "state": "elements of state",
}  # fmt: skip


def measure(config: RunConfig, of: str) -> float:
    """Return what is made equal, of a resolved config: parameters, non_embedding, flops (per token) or state."""
    account = describe(config.model, config.data.seq_len)
    numbers = {
        "parameters": account.total,
        "non_embedding": account.total - account.embedding,
        "flops": account.flops_forward / config.data.seq_len,
        "state": account.state_size,
    }
    return float(numbers[of])


@dataclass
class _Search:
    """Sizes by the key's value in units of multiple_of; None where the config does not allow the value."""

    equal: EqualConfig
    build: Callable[[int], RunConfig]
    sizes: dict[int, float | None]
    refusal: str = ""

    def size(self, units: int) -> float | None:
        if units not in self.sizes:
            try:
                self.sizes[units] = measure(self.build(units * self.equal.multiple_of), self.equal.of)
            except UserError as error:
                self.sizes[units], self.refusal = None, str(error).splitlines()[0]
        return self.sizes[units]

    def allowed(self, start: int, step: int, end: int) -> int | None:
        """Return the first value from `start` on that the config allows, at most at `end`."""
        for units in range(start, end + step, step)[:NEIGHBOURS]:
            if units >= 1 and self.size(units) is not None:
                return units
        return None


def equal_value(config: RunConfig, equal: EqualConfig, target: float, build: Callable[[int], RunConfig]) -> int | None:
    """Return the value of `equal.key` at which the model is nearest to `target`, within the tolerance; None where the
    config leaves it to a default that is right.

    `build(value)` is the run with that value; it raises UserError where the config does not allow it. The size must not
    fall while the key rises. Raises UserError, with the nearest sizes, where no allowed value is within the tolerance.
    """
    own = base_value(config.model_dump(mode="json", serialize_as_any=True), equal.key)
    if own is not None and (isinstance(own, bool) or not isinstance(own, int) or own < 1):
        raise UserError(f"equal.key = {equal.key}: holds {own!r}; expected a key that holds a whole number")
    if measure(config, equal.of) == target:
        return own
    search = _Search(equal, build, {})
    start, largest = (1, LARGEST_UNITS) if own is None else (max(1, own // equal.multiple_of), own * LARGEST_FACTOR)
    below, above = _bracket(search, start, largest, target)
    found = [(units, size) for units in (below, above) if units is not None and (size := search.size(units))]
    best = min(found, key=lambda pair: abs(pair[1] / target - 1), default=None)
    if best and abs(best[1] / target - 1) <= equal.tolerance:
        return best[0] * equal.multiple_of
    listed = ", ".join(
        f"{units * equal.multiple_of} gives {significant(size)} ({size / target - 1:+.1%})" for units, size in found
    )
    reason = listed or search.refusal or "no value is allowed"
    raise UserError(
        f"equal.key = {equal.key}: no value comes within {equal.tolerance:.3g} of the {significant(target)} "
        f"{WORDS[equal.of]} of the reference: {reason}; expected a larger equal.tolerance, or a key with finer steps"
    )


def _bracket(search: _Search, start: int, largest: int, target: float) -> tuple[int | None, int | None]:
    """Return the largest allowed value of at most the target's size, and the smallest allowed one of at least that."""
    low, high, above = 0, largest, start
    while above < high:  # the first doubling that is large enough
        units = search.allowed(above, 1, high)
        if units is None:
            break
        if (search.size(units) or 0.0) >= target:
            high = units
            break
        low, above = units, max(2 * above, units + 1)
    while high - low > 1:
        middle = (low + high) // 2
        units = search.allowed(middle, 1, high - 1)
        if units is None:  # nothing is allowed from the middle up
            units = search.allowed(middle - 1, -1, low + 1)
            if units is None:
                break
        if (search.size(units) or 0.0) >= target:
            high = units
        else:
            low = units
    return (low or None), (high if search.size(high) is not None else None)
