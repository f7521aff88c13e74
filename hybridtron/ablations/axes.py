"""The levels of each axis, and the combinations of them that become cells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridtron.ablations.config import (
    AblationConfig,
    BudgetAxis,
    GridAxis,
    RandomAxis,
    RangeConfig,
    VariantsAxis,
)
from hybridtron.ablations.expressions import Expression, parse_expression
from hybridtron.config import yaml_text
from hybridtron.config.dotted import value_at
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.reporting.numbers import short_number

BASE = "base"  # the level without overrides
BUDGETS = {"flops": "training FLOPs", "tokens": "tokens", "tokens_per_parameter": "tokens per parameter"}


@dataclass(frozen=True)
class Level:
    """One setting of an axis. `value` is a number where levels lie on a numeric scale, else the name."""

    name: str
    overrides: tuple[str, ...] = ()
    value: Any = None
    budget: tuple[str, float] | None = None  # kind and amount
    drawn: tuple[tuple[str, int | float], ...] = ()  # keys of a random axis with their values


@dataclass(frozen=True)
class Axis:
    """An axis with its levels in order; `reference` is the level that others are compared with."""

    name: str
    levels: tuple[Level, ...]
    reference: Level
    quantity: str  # what its levels are: a key, a kind of budget, or the axis's own name

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(level.value, int | float) and not isinstance(level.value, bool) for level in self.levels)


Combination = Mapping[str, Level]  # axis -> level


def expand_axes(config: AblationConfig, base: Mapping[str, Any]) -> list[Axis]:
    """Return the axes of a study. `base` is the composed mapping of its base run, with defaults filled in.

    Raises UserError where two levels of an axis have one name.
    """
    alone = config.combine == "one_at_a_time"
    axes = []
    for name, axis in config.axes.items():
        if isinstance(axis, GridAxis):
            made = _grid(name, axis, base, alone)
        elif isinstance(axis, VariantsAxis):
            made = _variants(name, axis, alone)
        elif isinstance(axis, BudgetAxis):
            made = _budgets(name, axis, alone)
        else:
            made = _random(name, axis)
        names = [level.name for level in made.levels]
        if twice := next((level for level in names if names.count(level) > 1), None):
            raise UserError(f"axes.{name}: two levels are called {twice}; expected different values")
        axes.append(made)
    return axes


def combinations(config: AblationConfig, axes: list[Axis]) -> Iterator[dict[str, Level]]:
    """Yield what becomes cells, the reference first, without those that `exclude` or a constraint over axes leaves out.

    Raises UserError where it leaves out the reference, or names a level that its axis has not.
    """
    _require_levels(config, axes)
    reference = {axis.name: axis.reference for axis in axes}
    constraints = [parse_expression(text) for text in config.constraints]
    about_axes = [expression for expression in constraints if expression.names <= reference.keys()]
    if reason := _excluded(config, about_axes, reference):
        raise UserError(f"{reason} leaves out the reference {cell_name(reference, axes)}; expected it to stay")
    yield reference
    if config.combine == "product":
        products = itertools.product(*(axis.levels for axis in axes))
        others: Iterator[dict[str, Level]] = (
            {axis.name: level for axis, level in zip(axes, levels, strict=True)} for levels in products
        )
    else:
        others = ({**reference, axis.name: level} for axis in axes for level in axis.levels)
    for combination in others:
        if combination != reference and not _excluded(config, about_axes, combination):
            yield combination


def cell_name(combination: Combination, axes: list[Axis]) -> str:
    """Return the levels of a cell as a name: `lr-0.002_mixer-attn`."""
    return "_".join(f"{axis.name}-{combination[axis.name].name}" for axis in axes)


def axis_value(combination: Combination, axis: str) -> Any:
    """Return what an axis stands for in a constraint, in `exclude` and in the results: its value or its level."""
    level = combination[axis]
    return level.name if level.value is None else level.value


def _require_levels(config: AblationConfig, axes: list[Axis]) -> None:
    """Raise UserError for a level in `exclude` that its axis has not, by name or by value."""
    known = {axis.name: [*axis.levels, axis.reference] for axis in axes}
    for entry in config.exclude:
        for axis, levels in entry.items():
            for one in _listed(levels):
                if not any(one in (level.name, level.value) for level in known[axis]):
                    names = dict.fromkeys(level.name for level in known[axis])
                    raise UserError(f"exclude.{axis} = {one}: no level of it; expected {one_of(str(one), names)}")


def _excluded(config: AblationConfig, about_axes: list[Expression], combination: Combination) -> str:
    """Return what leaves the combination out, or nothing."""
    for entry in config.exclude:
        matches = (
            any(one in (combination[axis].name, combination[axis].value) for one in _listed(levels))
            for axis, levels in entry.items()
        )
        if entry and all(matches):
            return f"exclude = {entry}"
    for expression in about_axes:
        if not expression.holds(lambda name: axis_value(combination, name)):
            return f"constraint {expression.text!r}"
    return ""


def _listed(levels: Any) -> list[Any]:
    return levels if isinstance(levels, list) else [levels]


def _grid(name: str, axis: GridAxis, base: Mapping[str, Any], alone: bool) -> Axis:
    """Return the values of a key; the reference is the base run's value, or the first."""
    levels = [
        Level(_level_name(value), (f"{axis.key}={yaml_text.write_inline(value)}",), _number(value))
        for value in axis.values
    ]
    own = value_at(base, axis.key)
    reference = next((level for level, value in zip(levels, axis.values, strict=True) if value == own), None)
    if reference is None and alone:
        reference = Level(_level_name(own) if own is not None else BASE, (), _number(own))
        levels.insert(0, reference)
    return Axis(name, tuple(levels), reference or levels[0], axis.key)


def _variants(name: str, axis: VariantsAxis, alone: bool) -> Axis:
    levels = [Level(level, tuple(overrides)) for level, overrides in axis.variants.items()]
    reference = next((level for level in levels if not level.overrides), None)
    if reference is None and alone:
        reference = Level(BASE)
        levels.insert(0, reference)
    return Axis(name, tuple(levels), reference if alone and reference else levels[0], name)


def _budgets(name: str, axis: BudgetAxis, alone: bool) -> Axis:
    levels = [Level(short_number(amount).replace("-", "m"), (), amount, (axis.kind, amount)) for amount in axis.amounts]
    if alone:
        levels.insert(0, Level(BASE))
    return Axis(name, tuple(levels), levels[0], BUDGETS[axis.kind])


def _random(name: str, axis: RandomAxis) -> Axis:
    """Return draws, each from a generator of its own, so that more draws keep the first ones."""
    levels = [Level(BASE)]
    for number in range(axis.draws):
        generator = np.random.default_rng([axis.seed, number])
        values = {key: _draw(generator, some) for key, some in axis.keys.items()}
        overrides = tuple(f"{key}={yaml_text.write_inline(value)}" for key, value in values.items())
        value = next(iter(values.values())) if len(values) == 1 else None
        levels.append(Level(f"draw{number + 1}", overrides, value, drawn=tuple(values.items())))
    return Axis(name, tuple(levels), levels[0], next(iter(axis.keys)) if len(axis.keys) == 1 else name)


def _draw(generator: np.random.Generator, some: RangeConfig) -> int | float:
    low, high = np.log([some.low, some.high]) if some.scale == "log" else (some.low, some.high)
    drawn = float(generator.uniform(low, high))
    value = float(np.exp(drawn)) if some.scale == "log" else drawn
    if some.multiple_of is None:
        return float(f"{value:.6g}")
    return max(1, round(value / some.multiple_of)) * some.multiple_of


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _level_name(value: Any) -> str:
    """Return a value as a short name of letters, digits and `.+-`."""
    text = f"{value:g}" if isinstance(value, float) else yaml_text.write_inline(value)
    short = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.+")
    negative = "m" if isinstance(value, int | float) and value < 0 else ""
    return (negative + short)[:40] or "empty"
