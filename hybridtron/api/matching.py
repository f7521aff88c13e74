"""Make a model as large as another by one key of its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from hybridtron.accounting.equal_size import (
    WIDTH,
    WORDS,
    Fit,
    Measure,
    default_key,
    fit_size,
    measure,
    require_whole_number,
)
from hybridtron.api.configs import Config, read_model_config
from hybridtron.config.dotted import value_at
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.reporting.numbers import significant
from hybridtron.reporting.shown import Shown, show
from hybridtron.training.config import RunConfig

TOLERANCE = 0.001


@dataclass(frozen=True)
class Match(Shown):
    """A config that is as large as another, and the key that made it so.

    `refusal` is why the values next to the one found are not allowed, where that is so; `was` the config's own value.
    """

    key: str
    value: int
    was: int | None
    of: Measure
    size: float
    target: float
    other: str
    refusal: str
    config: RunConfig

    @property
    def override(self) -> str:
        """Return the override that gives the config this size."""
        return f"{self.key}={self.value}"

    @property
    def difference(self) -> float:
        """Return the relative difference from the other's size."""
        return self.size / self.target - 1

    def as_json(self) -> dict[str, Any]:
        return {
            "override": self.override,
            "key": self.key,
            "value": self.value,
            "was": self.was,
            "of": self.of,
            "size": self.size,
            "target": self.target,
            "difference": self.difference,
            "other": self.other,
            "constraint": self.refusal or None,
        }

    @property
    def line(self) -> str:
        """Return the override, and how near the size is, in one line."""
        refused = f"; the next value is refused: {self.refusal}" if self.refusal else ""
        return (
            f"{self.override} (was {self.was}): {self.size:,.0f} {WORDS[self.of]}, {100 * self.difference:+.3f} % from "
            f"the {self.target:,.0f} of {self.other}{refused}"
        )


@show.register(Match)
def _show_match(match: Match, console: Console) -> None:
    console.print(match.line, markup=False, soft_wrap=True)


def match_size(
    config: Config,
    other: Config,
    *overrides: str,
    of: Measure = "parameters",
    adjust: str | None = None,
    tolerance: float = TOLERANCE,
    multiple_of: int = 1,
    other_overrides: Sequence[str] = (),
) -> Match:
    """Find the value of one key at which a config's model is as large as another's.

    Args:
        config: a YAML file, a run folder, a dict, or a pattern of layers.
        other: the same, of the model whose size is wanted; its FLOPs and state are taken at this config's data.seq_len.
        overrides: `key=value` changes of `config`.
        of: what is made equal: `parameters`, `non_embedding`, `flops` (forward, per token) or `state`.
        adjust: the key, such as `model.hidden_size`; by default the width of the largest feed-forward block, for state
            the largest state size, or `model.hidden_size` where there is none.
        tolerance: largest relative difference.
        multiple_of: values tried are multiples of this.
        other_overrides: `key=value` changes of `other`, such as `size=350m`.

    Raises:
        UserError: where a config is wrong, the key holds no whole number, or no allowed value comes within the
            tolerance; it names the nearest ones.
    """
    if of not in WORDS:
        raise UserError(f"of = {of!r}: expected {one_of(of, WORDS)}")
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise UserError(f"tolerance = {tolerance}: expected a number between 0 and 1")
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise UserError(f"multiple_of = {multiple_of}: expected a whole number of at least 1")
    if adjust is not None and not isinstance(adjust, str):
        raise UserError(f"adjust = {adjust!r}: expected the name of a key, such as model.{WIDTH}")
    own, reference = read_model_config(config, *overrides), read_model_config(other, *other_overrides)
    seq_len = own.data.seq_len
    target = measure(reference.model, seq_len, of)
    if not target:
        raise UserError(f"{reference.name}: has no {WORDS[of]}; expected a model that has some")
    key = adjust or f"model.{default_key(own.model, seq_len, of)}"
    place = f"adjust = {key}"
    was = _own_value(own, key, place)
    if was is not None and was % multiple_of == 0 and measure(own.model, seq_len, of) == target:
        return Match(key, was, was, of, target, target, reference.name, "", own)

    def build(value: int) -> RunConfig:
        return read_model_config(config, *overrides, f"{key}={value}")

    fit = fit_size(target, was, lambda value: measure(build(value).model, seq_len, of), multiple_of)
    value = fit.within(tolerance)
    if value is None:
        raise UserError(f"{place}: {fit.describe(tolerance, of, reference.name)}{_advice(key, fit)}")
    built = build(value)
    size = measure(built.model, seq_len, of)
    return Match(key, value, was, of, size, target, reference.name, fit.refusal, built)


def _own_value(config: RunConfig, key: str, place: str) -> int | None:
    """Return the value of a key that may be adjusted. Raises UserError where it is none."""
    keys = config.model_dump(mode="json", serialize_as_any=True)
    section, _, name = key.rpartition(".")
    siblings = value_at(keys, section) if section else keys
    if not isinstance(siblings, dict) or name not in siblings:
        choices = [f"{section}.{sibling}" for sibling in siblings] if isinstance(siblings, dict) and section else keys
        raise UserError(f"{place}: no such key; expected {one_of(key, choices)}")
    was = require_whole_number(place, siblings[name])
    if not key.startswith("model."):
        raise UserError(f"{place}: changes no size of a model; expected a key below model")
    return was


def _advice(key: str, fit: Fit) -> str:
    width = "" if key == f"model.{WIDTH}" else f", such as model.{WIDTH}"
    best = fit.best
    far = f"a tolerance of {significant(abs(fit.difference(best[1])))}, " if best else ""
    return f"; expected {far}another config, or another key{width}"
