"""Cells: combinations of levels as resolved configs, and their runs, each with a name that its config determines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybridtron.ablations.axes import Axis, Combination, Level, axis_value, cell_name, combinations
from hybridtron.ablations.axes import expand_axes as expand
from hybridtron.ablations.config import AblationConfig, BudgetAxis
from hybridtron.ablations.equal_size import equal_value, measure
from hybridtron.ablations.expressions import parse_expression
from hybridtron.ablations.rules import quantities, ruled_overrides
from hybridtron.config.compose import OVERRIDE, compose
from hybridtron.config.dotted import value_at
from hybridtron.config.load import build
from hybridtron.config.nearest import nearest
from hybridtron.data.blend_config import without_paths
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.validation.resolve import resolve

LONGEST_NAME = 80  # characters of a cell's name; the hash after it tells apart what is cut


@dataclass(frozen=True)
class Cell:
    """One combination of levels. `config` is resolved, and complete but for name, folder and seed."""

    name: str
    combination: dict[str, Level]
    config: RunConfig
    adjusted: int | None  # value of equal.key, where it differs from what the levels say

    @cached_property
    def numbers(self) -> dict[str, float]:
        return quantities(self.config)


@dataclass(frozen=True)
class CellRun:
    """One cell with one seed: a training run, whose name ends in a hash of its config and of the data."""

    cell: Cell
    seed: int
    name: str
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """All axes, cells and runs of a study; the first cell is the reference."""

    config: AblationConfig
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    runs: tuple[CellRun, ...]
    left_out: int  # combinations that the constraints leave out, or that equal an earlier cell

    @property
    def reference(self) -> Cell:
        return self.cells[0]


def make_plan(config: AblationConfig) -> Plan:
    """Expand a study into its runs. Nothing is written.

    Raises UserError where a cell's config, its size or its data does not fit, naming the cell, and where the levels of
    an axis do not differ in what is trained.
    """
    axes = expand(config, _base_values(config))
    builder = _Builder(config, axes)
    cells: dict[str, Cell] = {}
    repeated: list[Cell] = []
    left_out = 0
    for combination in combinations(config, axes):
        cell = builder.cell(combination)
        key = "" if cell is None else json.dumps(_identity(cell.config), sort_keys=True)
        if cell is None and not cells:
            raise UserError(f"constraints: leave out the reference {cell_name(combination, axes)}; expected it to stay")
        if cell is None:
            left_out += 1
        elif key in cells:
            repeated.append(cell)
        else:
            cells[key] = cell
    _require_differences(axes, list(cells.values()), repeated)
    fingerprints = _Fingerprints()
    runs = [_run(cell, seed, config, fingerprints) for cell in cells.values() for seed in config.seeds]
    return Plan(config, tuple(axes), tuple(cells.values()), tuple(runs), left_out + len(repeated))


def _require_differences(axes: Sequence[Axis], cells: Sequence[Cell], repeated: Sequence[Cell]) -> None:
    """Raise UserError for an axis of which one level alone is left, since the cells of the others repeat it."""
    for axis in axes:
        left = {cell.combination[axis.name].name for cell in cells}
        same = sorted({cell.combination[axis.name].name for cell in repeated} - left)
        if len(left) == 1 and same:
            raise UserError(
                f"axes.{axis.name}: {', '.join([*left, *same])} are the same training; "
                "expected levels that change what is trained, not how fast"
            )


def _base_values(config: AblationConfig) -> Mapping[str, Any]:
    """Return the base run with its defaults; nothing where it needs an axis to be whole, such as one of sizes."""
    try:
        composed = compose(config.run, config.overrides)
        return build(composed.mapping, RunConfig, composed.provenance).model_dump(mode="json", serialize_as_any=True)
    except UserError:
        return {}


class _Builder:
    """Configs of combinations: levels, then equal size, then budgets and rules, then constraints."""

    def __init__(self, config: AblationConfig, axes: Sequence[Axis]) -> None:
        self.config, self.axes = config, list(axes)
        self.constraints = [parse_expression(text) for text in config.constraints]
        self.budget_axis = next((axis for axis in config.axes.values() if isinstance(axis, BudgetAxis)), None)
        self.targets: dict[str, float] = {}  # what equal size aims at, by the reference's name

    def cell(self, combination: dict[str, Level]) -> Cell | None:
        """Return the cell of a combination; None where a constraint leaves it out. Raises UserError."""
        name = cell_name(combination, self.axes)
        if self.config.combine == "one_at_a_time":
            changed = [axis for axis in self.axes if combination[axis.name] != axis.reference]
            name = cell_name(combination, changed) or "base"
        try:
            overrides = self._overrides(combination)
            config = self._build(overrides)
            adjusted = self._adjusted(config, combination, overrides)
            if adjusted is not None and self.config.equal:
                overrides.append(f"{self.config.equal.key}={adjusted}")
                config = self._build(overrides)
            budget = next((level.budget for level in combination.values() if level.budget), None)
            if more := ruled_overrides(config, self.config.rules, budget, self.budget_axis):
                config = self._build([*overrides, *more])
            if config.data.valid is None:
                raise UserError("data.valid is missing; expected held-out tokens to compare losses on")
            cell = Cell(name, combination, config, adjusted)
            return cell if self._fulfils(cell) else None
        except UserError as error:
            where = str(error).replace(f"in {OVERRIDE}", "in the overrides and levels of the study")
            raise UserError(f"cell {name}: {where}") from None

    def _overrides(self, combination: Combination) -> list[str]:
        levels = (combination[axis.name] for axis in self.axes)
        return [*self.config.overrides, *(override for level in levels for override in level.overrides)]

    def _build(self, overrides: Sequence[str]) -> RunConfig:
        composed = compose(self.config.run, overrides)
        return resolve(build(composed.mapping, RunConfig, composed.provenance))

    def _adjusted(self, config: RunConfig, combination: Combination, overrides: list[str]) -> int | None:
        """Return the value of equal.key that makes the cell as large as its reference; None where it has it."""
        equal = self.config.equal
        if equal is None:
            return None
        shared = {axis.name: combination[axis.name] for axis in self.axes if axis.name in equal.within}
        reference = {axis.name: axis.reference for axis in self.axes} | shared
        name = cell_name(reference, self.axes)
        if name not in self.targets:
            self.targets[name] = measure(self._build(self._overrides(reference)), equal.of)
        own = value_at(config.model_dump(mode="json", serialize_as_any=True), equal.key)
        found = equal_value(
            config, equal, self.targets[name], lambda value: self._build([*overrides, f"{equal.key}={value}"])
        )
        return None if found == own else found

    def _fulfils(self, cell: Cell) -> bool:
        mapping = cell.config.model_dump(mode="json", serialize_as_any=True)

        def value_of(name: str) -> Any:
            if name in cell.combination:
                return axis_value(cell.combination, name)
            if name in cell.numbers:
                return cell.numbers[name]
            value = value_at(mapping, name)
            if value is None or isinstance(value, dict):
                close = nearest(name, [*cell.combination, *cell.numbers, *_keys(mapping)])
                raise UserError(
                    f"constraints: no key, axis or quantity {name}" + (f" (nearest: {close})" if close else "")
                )
            return value

        return all(expression.holds(value_of) for expression in self.constraints)


def _keys(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of all values."""
    found = []
    for key, value in mapping.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


class _Fingerprints:
    """What the token files and the tokenizer of a run hold, read once for each data section."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, str]] = {}

    def __call__(self, config: RunConfig) -> dict[str, str]:
        key = json.dumps([config.data.model_dump(mode="json"), config.model.vocab_size])
        if key not in self.known:
            self.known[key] = open_corpus(config).fingerprints  # also tells what is missing before anything is trained
        return self.known[key]


def _identity(config: RunConfig) -> dict[str, Any]:
    """Return the parts of a config that decide what is measured: blocks that no layer uses are none of them."""
    identity = config.identity()
    used = set(config.model.used_blocks)
    identity["model"]["blocks"] = {name: block for name, block in identity["model"]["blocks"].items() if name in used}
    return identity


def _run(cell: Cell, seed: int, config: AblationConfig, fingerprints: _Fingerprints) -> CellRun:
    """Return the run of a cell with a seed; its hash does not depend on where the data and the study lie."""
    try:
        held = fingerprints(cell.config)
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from None
    identity = _identity(cell.config) | {"seed": seed}
    identity["data"] = without_paths(identity["data"], held)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{cell.name.replace('+', 'p')[:LONGEST_NAME].rstrip('._-')}-s{seed}-{digest}"
    folder = config.study_folder / "cells" / name
    return CellRun(cell, seed, name, cell.config.model_copy(update={"name": name, "folder": str(folder), "seed": seed}))
