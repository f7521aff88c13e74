"""Sizes of the patterns of a search, and the width that makes a pattern as large as a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hybridtron.accounting.equal_size import WORDS, Measure, default_key, fit_size, measure, require_whole_number
from hybridtron.composer.nas.config import EqualSizeConfig
from hybridtron.config.dotted import value_at
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import parse

Width = tuple[str, int]  # a key of a model, such as hidden_size or blocks.mlp.ffn_hidden_size, and its value
Build = Callable[[Sequence[str], Width | None], ModelConfig]


class Sizes:
    """Parameters of patterns, and their widths where `equal` asks for equal sizes.

    `build(layers, width)` is the model of a pattern with one width changed. Both depend on how often a pattern has each
    block alone, by which they are remembered. `counted` is the measure that stands for parameters.

    Raises UserError where the baseline cannot be built.
    """

    def __init__(self, build: Build, seq_len: int, counted: Measure, equal: EqualSizeConfig | None) -> None:
        self.build, self.seq_len, self.counted, self.equal = build, seq_len, counted, equal
        self._known: dict[tuple[str, ...], Width | None] = {}
        self._parameters: dict[tuple[str, ...], int | None] = {}
        if equal:
            self.of: Measure = counted if equal.of == "parameters" else equal.of
            self.target = measure(build(parse(equal.pattern).layers, None), seq_len, self.of)

    def width(self, layers: Sequence[str]) -> Width | None:
        """Return the width to change in a pattern; None where it is right as it is.

        Raises UserError where no allowed value comes within the tolerance.
        """
        if self.equal is None:
            return None
        counts = tuple(sorted(layers))
        if counts not in self._known:
            self._known[counts] = self._solved(counts, self.equal)
        return self._known[counts]

    def parameters(self, layers: Sequence[str]) -> int | None:
        """Count the parameters of a pattern as it is evaluated; None where it cannot be made as large as the rest."""
        counts = tuple(sorted(layers))
        if counts not in self._parameters:
            try:
                size = measure(self.build(counts, self.width(counts)), self.seq_len, self.counted)
            except UserError:
                self._parameters[counts] = None
            else:
                self._parameters[counts] = int(size)
        return self._parameters[counts]

    @property
    def sentence(self) -> str | None:
        """Return what all patterns have in common, in words; None where sizes are left alone."""
        if self.equal is None:
            return None
        by = self.equal.key or "the width of its largest feed-forward block"
        return (
            f"Every pattern was given the {WORDS[self.of]} of {self.equal.pattern}, {self.target:,.0f}, within "
            f"{100 * self.equal.tolerance:g} %, by {by}."
        )

    def _solved(self, layers: Sequence[str], equal: EqualSizeConfig) -> Width | None:
        model = self.build(layers, None)
        if measure(model, self.seq_len, self.of) == self.target:
            return None
        key = equal.key.removeprefix("model.") if equal.key else default_key(model, self.seq_len, self.of)
        place = f"equal_size.key = model.{key}"
        own = require_whole_number(place, value_at(model.model_dump(mode="json", serialize_as_any=True), key))
        if own is None:
            raise UserError(f"{place}: is not in the pattern {' '.join(layers)}; expected a width that it has")

        def size(value: int) -> float:
            return measure(self.build(layers, (key, value)), self.seq_len, self.of)

        fit = fit_size(self.target, own, size)
        value = fit.within(equal.tolerance)
        if value is None:
            raise UserError(f"{place}: {fit.describe(equal.tolerance, self.of, equal.pattern)}")
        return key, value
