"""Models that patterns are grown into, all as large as one target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridtron.accounting.equal_size import WORDS, Measure, default_key, fit_size, measure, require_whole_number
from hybridtron.composer.grow.kept_blocks import Source, with_blocks_of
from hybridtron.composer.grow.scale import Method, Round, scale
from hybridtron.composer.transfer.scores import Layers
from hybridtron.config.compose import SIZE_KEY, compose
from hybridtron.config.dotted import value_at, with_value_at
from hybridtron.config.load import build, load
from hybridtron.data.blend_config import without_paths
from hybridtron.errors import UserError
from hybridtron.pattern import Pattern
from hybridtron.reporting.numbers import significant
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.validation.resolve import resolve


@dataclass(frozen=True)
class Growth:
    """How patterns become as large as a target: the method, what is made equal, how nearly, and whose blocks."""

    method: Method
    of: Measure = "parameters"
    tolerance: float = 0.01
    keep_blocks: Source | None = None

    def grow(self, layers: Layers, target: RunConfig) -> RunConfig:
        """Return the target's run with the grown pattern, of which one width is changed to the target's size.

        The width is that of the largest feed-forward block, or hidden_size where there is none. Raises UserError where
        the pattern cannot be grown, or no width comes within the tolerance.
        """
        rounding: Round = "flops" if self.of == "flops" else "parameters"
        run = scale(Pattern(layers), target, self.method, rounding, keep_blocks=self.keep_blocks).config
        seq_len = target.data.seq_len
        goal = measure(target.model, seq_len, self.of)
        if measure(run.model, seq_len, self.of) == goal:
            return run
        key = f"model.{default_key(run.model, seq_len, self.of)}"
        keys = run.model_dump(mode="json", serialize_as_any=True)
        own = require_whole_number(key, value_at(keys, key))

        def with_width(value: int) -> RunConfig:
            return resolve(build(with_value_at(keys, key, value), RunConfig))

        fit = fit_size(goal, own, lambda value: measure(with_width(value).model, seq_len, self.of))
        value = fit.within(self.tolerance)
        if value is None:
            reason = fit.describe(self.tolerance, self.of, target.name)
            larger = f"a tolerance of {significant(abs(fit.difference(fit.best[1])))}, " if fit.best else ""
            raise UserError(
                f"{target.name}: pattern {Pattern(layers)}: {key}: {reason}; expected {larger}another size, or other "
                "patterns"
            )
        return with_width(value)

    def identity(self, targets: Mapping[str, RunConfig]) -> dict[str, Any]:
        """Return what must be the same for losses to belong to one study; patterns and seeds may be added."""
        found: dict[str, Any] = {}
        for size, target in targets.items():
            run = target.identity()
            run.pop("seed")
            run["data"] = without_paths(run["data"], open_corpus(target).fingerprints)
            kept = with_blocks_of(self.keep_blocks, target.model) if self.keep_blocks is not None else None
            found[size] = run | ({"kept": kept.identity()} if kept else {})
        return {"transfer": {"method": self.method, "of": self.of, "tolerance": self.tolerance}, "targets": found}

    @property
    def sentence(self) -> str:
        """Return what all models have in common, in words."""
        words = {"stack": "stacked", "stretch": "stretched"}
        return (
            f"Patterns were {words[self.method]}, and one width of each set so that it has the {WORDS[self.of]} of the "
            f"target within {100 * self.tolerance:g} %."
        )


def read_targets(
    target: str | os.PathLike[str] | Mapping[str, Any], sizes: Sequence[str], overrides: Sequence[str]
) -> dict[str, RunConfig]:
    """Read a target in each of some sizes of its table, by size; without sizes as it is, by its name.

    Raises UserError for a target with errors, without held-out tokens, or one that begins with weights of another run.
    """
    listed = [[*overrides, f"size={size}"] for size in sizes] or [[*overrides]]
    if sizes and SIZE_KEY in compose(target, listed[0]).mapping:  # which a table of sizes takes away
        raise UserError(f"sizes = {' '.join(sizes)}: the target has no table of sizes; expected none")
    runs = [resolve(load(target, each, RunConfig)) for each in listed]
    found = dict(zip(sizes or [runs[0].name], runs, strict=True))
    if len(found) < len(runs):
        raise UserError(f"sizes = {' '.join(sizes)}: expected each once")
    for run in found.values():
        if run.data.valid is None:
            raise UserError(f"{run.name}: has no data.valid; expected held-out tokens to score on")
        if run.train.init_from is not None:
            raise UserError(f"{run.name}: has train.init_from; expected none: every model begins with random weights")
    return found
