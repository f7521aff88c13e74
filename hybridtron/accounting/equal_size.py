"""Find the value of one whole number of a config at which a model is as large as another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridtron.accounting.describe import describe
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.reporting.numbers import si

NEIGHBOURS = 256  # steps of the key that are tried for a value that the config allows
LARGEST_FACTOR = 2**12  # of the key's own value
LARGEST_UNITS = 2**20  # where the key has no value yet
WIDTH, FFN_WIDTH = "hidden_size", "ffn_hidden_size"

Measure = Literal["parameters", "non_embedding", "flops", "state"]
WORDS: Mapping[Measure, str] = {
    "parameters": "parameters", "non_embedding": "parameters without embeddings", "flops": "forward FLOPs per token",
    "state": "elements of state",
}  # fmt: skip


def measure(model: ModelConfig, seq_len: int, of: Measure) -> float:
    """Return the size of a model with a resolved vocabulary: FLOPs per token and state at sequences of `seq_len`."""
    account = describe(model, seq_len)
    numbers: Mapping[Measure, float] = {
        "parameters": account.total,
        "non_embedding": account.total - account.embedding,
        "flops": account.flops_forward / seq_len,
        "state": account.state_size,
    }
    return float(numbers[of])


def default_key(model: ModelConfig, seq_len: int, of: Measure) -> str:
    """Return the key of the `model` section that changes a size in the finest steps.

    Parameters and FLOPs: the width of the feed-forward block that has most parameters. State: the state size of the
    block that has most. hidden_size where no block has such a key.
    """
    sizes: dict[str, int] = {}
    for name in model.layer_names:
        block = model.blocks[name]
        facts = block.facts()
        keys = [key for key in facts if facts[key].sets_state == "free"] if of == "state" else [FFN_WIDTH]
        for key in keys:
            if getattr(block, key, None):
                size = block.state_size(seq_len) if of == "state" else block.parameters()
                sizes[f"blocks.{name}.{key}"] = sizes.get(f"blocks.{name}.{key}", 0) + size
    return max(sizes, key=lambda key: sizes[key]) if sizes else WIDTH


def require_whole_number(place: str, value: Any) -> int | None:
    """Return the value of a key that can be adjusted, which may have none yet. Raises UserError for another kind."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{place}: holds {value!r}; expected a key that holds a whole number")
    return value


@dataclass(frozen=True)
class Fit:
    """Allowed values of a key with their sizes: those nearest to the target, from below and from above.

    `refusal` is why a value between them is not allowed, where that is so.
    """

    target: float
    found: tuple[tuple[int, float], ...]
    refusal: str = ""

    @property
    def best(self) -> tuple[int, float] | None:
        """Return the value and size nearest to the target."""
        return min(self.found, key=lambda pair: abs(self.difference(pair[1])), default=None)

    def difference(self, size: float) -> float:
        """Return the relative difference from the target."""
        return size / self.target - 1

    def within(self, tolerance: float) -> int | None:
        """Return the best value where its difference is at most `tolerance`."""
        best = self.best
        return best[0] if best and abs(self.difference(best[1])) <= tolerance else None

    def describe(self, tolerance: float, of: Measure, whose: str) -> str:
        """Return why no value is right, with the nearest ones, as a part of an error's line."""
        listed = ", ".join(
            f"{value} gives {si(size)} ({100 * self.difference(size):+.2g}%)" for value, size in self.found
        )
        between = f"; between them, {self.refusal}" if len(self.found) > 1 and self.refusal else ""
        return f"no value comes within {tolerance:.3g} of the {si(self.target)} {WORDS[of]} of {whose}: " + (
            (listed + between) if listed else self.refusal or "no value is allowed"
        )


def fit_size(target: float, own: int | None, size: Callable[[int], float], multiple_of: int = 1) -> Fit:
    """Return the values of a key, multiples of `multiple_of`, at which a model is nearest to a size.

    `size(value)` is the model's with that value; it raises UserError where the config does not allow it, and must not
    fall while the value rises. `own` is the key's value in the config, from which the search starts.
    """
    search = _Search(size, multiple_of)
    start, largest = (1, LARGEST_UNITS) if own is None else (max(1, own // multiple_of), own * LARGEST_FACTOR)
    below, above = _bracket(search, start, largest, target)
    units = dict.fromkeys(each for each in (below, above) if each is not None)
    found = tuple((each * multiple_of, found) for each in units if (found := search.size(each)))
    gap = below is not None and above is not None and above - below > 1
    if gap or not found:
        search.size(above - 1 if gap and above else start)
        return Fit(target, found, search.refusal)
    return Fit(target, found)


@dataclass
class _Search:
    """Sizes by the key's value in units of multiple_of; None where the config does not allow the value."""

    measure: Callable[[int], float]
    multiple_of: int
    sizes: dict[int, float | None] = field(default_factory=dict)
    refusal: str = ""

    def size(self, units: int) -> float | None:
        if units not in self.sizes:
            try:
                self.sizes[units] = self.measure(units * self.multiple_of)
            except UserError as error:
                self.sizes[units], self.refusal = None, str(error).splitlines()[0]
        return self.sizes[units]

    def allowed(self, start: int, step: int, end: int) -> int | None:
        """Return the first value from `start` on that the config allows, at most at `end`."""
        for units in range(start, end + step, step)[:NEIGHBOURS]:
            if units >= 1 and self.size(units) is not None:
                return units
        return None


def _bracket(search: _Search, start: int, largest: int, target: float) -> tuple[int | None, int | None]:
    """Return the largest allowed value of at most the target's size, and the smallest allowed one of at least that."""
    low, high, above = 0, largest, start
    if search.allowed(start, 1, largest) is None:
        return None, None
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
