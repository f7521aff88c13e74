"""A law from one formula: its bounds and its name are enough.

Derivatives come from the formula itself (`fitting.optimize.derivatives`), exact to rounding. Operations of numpy,
comparisons, `where`, `minimum` and `maximum` work; a formula that loses the derivative by a parameter (abs, rounding)
is refused before anything is fitted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.outliers import OUTLIERS
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.symbols import SYMBOLS, columns_at
from hybridtron.laws.fitting.curves.complete import complete_fit
from hybridtron.laws.fitting.curves.curve import Build, Curve, CurveFit
from hybridtron.laws.fitting.curves.fixed import FIX, check_reach, misfit_warnings, read_fixed
from hybridtron.laws.fitting.curves.plots import loss_across, measured_against_predicted
from hybridtron.laws.fitting.optimize.derivatives import check_formula, differentiate
from hybridtron.laws.fitting.optimize.problem import Array, Problem, describe_objective
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings
from hybridtron.laws.fitting.uncertainty.identifiability import Tested
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.result import Fit, Series

_STARTS = 6000
Formula = Callable[..., Any]
Facts = Callable[[CurveFit, Runs, Settings], dict[str, Any]]
Doubts = Callable[[CurveFit, Runs], list[str]]


@dataclass(frozen=True, kw_only=True)
class FormulaLaw(Law):
    """A law that also gives its curve, for fits of a user's own."""

    build: Build


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What `formula_law` is told, by the names of its arguments."""

    name: str
    summary: str
    formula: Formula
    columns: tuple[str, ...]
    bounds: Mapping[str, tuple[float, float]]
    log_scale: Sequence[str] = ()
    anchors: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tested: Mapping[str, Sequence[str]] = field(default_factory=dict)
    size: Callable[[Runs], Array] | None = None
    delta: float = 1e-3
    facts: Facts | None = None
    doubts: Doubts = lambda fitted, runs: []
    template: str = "formula"
    across: tuple[str, str] | None = None
    at_most: Mapping[str, str] = field(default_factory=dict)

    def build(self, runs: Runs, delta: float, fixed: dict[str, float]) -> Curve:
        """Build the curve over these runs, with some parameters held at a value."""
        names = [name for name in self.bounds if name not in fixed]
        is_log = np.array([name in self.log_scale for name in names])
        box = np.array([self.bounds[name] for name in names], dtype=float)  # [p, 2]
        box[is_log] = np.log(box[is_log])
        middle = {size: float(np.log(runs[column]).mean()) for size, (column, _) in self.anchors.items()}
        data = {column: runs[column] for column in self.columns}

        def values(coordinates: Sequence[Any]) -> dict[str, Any]:
            at = dict(zip(names, coordinates, strict=True)) | fixed
            powers = {size: at[exponent] * middle[size] for size, (_, exponent) in self.anchors.items()}
            with np.errstate(over="ignore"):
                return {
                    name: np.exp(at[name] + powers.get(name, 0.0)) if is_log[i] else at[name]
                    for i, name in enumerate(names)
                }

        def evaluate(coordinates: Sequence[Any], columns: Mapping[str, Array]) -> Any:
            read = {column: columns[column] for column in self.columns}
            return self.formula(**read, **fixed, **values(coordinates))

        def loss(theta: Array, columns: Mapping[str, Array]) -> Any:
            return evaluate(list(theta.T[:, :, None]), columns)

        def predict(theta: Array, rows: Any) -> Array:
            return np.log(loss(theta, {column: array[rows] for column, array in data.items()}))

        def derivatives(theta: Array, rows: Any = slice(None)) -> tuple[Array, Array]:
            return differentiate(evaluate, {column: array[rows] for column, array in data.items()}, theta)

        starts = np.random.default_rng(0).uniform(box[:, 0], box[:, 1], (_STARTS, len(names)))
        problem = Problem(predict, derivatives, np.log(runs["loss"]), delta, box[:, 0], box[:, 1])
        tested = {
            i: Tested(name, bool(is_log[i]), tuple(other for other in self.tested[name] if other in names))
            for i, name in enumerate(names)
            if name in self.tested
        }
        return Curve(
            problem, starts, lambda theta: values(list(theta.T)), loss, runs["loss"],
            describe_objective(delta, "log loss"), True, tested=tested,
        )  # fmt: skip

    def fit(self, runs: Runs, settings: Settings) -> Fit:
        """Fit the law; raises UserError for a formula that cannot be differentiated."""
        fixed = read_fixed(settings.options.get("fix"), self.bounds, self.name)
        names = [name for name in self.bounds if name not in fixed]
        delta = self.delta if settings.delta is None else settings.delta
        build = partial(self.build, fixed=fixed)
        for point in settings.predict:
            columns_at(self.name, self.columns, self.at_most, point)  # refused before the fit
        if not fixed:
            _check_varied(self.name, self.columns, runs)
        curve = build(runs, delta)
        check_formula(self.name, names, curve.problem)
        beyond = check_reach(self.name, fixed, curve)
        facts = self.facts

        def warnings(fitted: CurveFit) -> list[str]:
            worse = misfit_warnings(fixed, fitted, self.build(runs, delta, {})) if fixed else []
            return beyond + worse + fitted.at_bounds(dict(enumerate(names))) + self.doubts(fitted, runs)

        return complete_fit(
            self.name, build, runs, settings, delta=delta,
            size=self.size(runs) if self.size is not None else 1 / runs["loss"], size_name="size",
            predict_point=lambda fitted, point: _predict(self, fitted, point, runs),
            curves=lambda fitted: self._curves(fitted, runs), template=self.template,
            check=warnings,
            facts=lambda fitted: {"fixed": fixed} | (facts(fitted, runs, settings) if facts else {}),
        )  # fmt: skip

    def _curves(self, fitted: CurveFit, runs: Runs) -> list[Series]:
        """Return what to plot."""
        across = loss_across(fitted, runs, self.columns, *self.across) if self.across else []
        return across + measured_against_predicted(fitted, "loss")


def formula_law(
    name: str,
    summary: str,
    formula: Formula,
    columns: Sequence[str],
    bounds: Mapping[str, tuple[float, float]],
    **more: Any,
) -> FormulaLaw:
    """Build a law that predicts `loss` by a formula, fitted by Huber of log loss.

    Args:
        formula: called with one array for each column and one for each parameter, all by name; returns the loss.
        columns: that the formula reads.
        bounds: of each parameter, in its own units; also the box that random starts are drawn from.
        log_scale: parameters searched by their logarithm (bounds above zero).
        anchors: size of a term -> (column, exponent): the size is searched, and bounded, as the term's value
            size * column^-exponent at the geometric mean of the column; it must be in `log_scale`.
        tested: parameter that gets no interval where the data hardly determine it -> those that then have none either.
        size: what "largest" means for the held-out runs, [n]; by default the lowest losses.
        delta: Huber threshold when the user gives none.
        facts, template: what the law's own verdict is told, and the name of its template.
        doubts: warnings of the law's own.
        across: column that the loss is plotted against, and the one at a few values of which it is.
        at_most: column -> the column above which its values cannot lie.

    Raises UserError for bounds that are no box, and for names that the formula does not take.
    """
    declared = Declared(name=name, summary=summary, formula=formula, columns=tuple(columns), bounds=bounds, **more)
    _check(declared)
    return FormulaLaw(
        name=name, summary=summary, columns=(*columns, "loss"), parameters=tuple(bounds), fit=declared.fit,
        build=partial(declared.build, fixed={}), options={"fix": FIX, "outliers": OUTLIERS}, at_most=declared.at_most,
    )  # fmt: skip


def _check(law: Declared) -> None:
    """Raise UserError for a declaration that contradicts itself."""
    for parameter, (low, high) in law.bounds.items():
        least = 0.0 if parameter in law.log_scale else -math.inf
        if not least < low < high < math.inf:
            kind = "finite numbers above zero" if parameter in law.log_scale else "finite numbers"
            raise UserError(
                f"law {law.name}: bounds of {parameter} are {low:g} and {high:g}; expected two {kind}, smaller first"
            )
    anchored = [size for size, (_, exponent) in law.anchors.items() if {size, exponent} <= set(law.bounds)]
    unknown = {*law.log_scale, *law.tested, *law.anchors} - set(law.bounds)
    if unknown or set(anchored) - set(law.log_scale) or len(anchored) < len(law.anchors):
        raise UserError(
            f"law {law.name}: log_scale, tested and anchors name parameters of the bounds, and anchors those of "
            f"log_scale; expected some of {', '.join(law.bounds)}"
        )
    try:
        inspect.signature(law.formula).bind(**dict.fromkeys((*law.columns, *law.bounds)))
    except TypeError as error:
        raise UserError(
            f"law {law.name}: the formula is called with its columns and parameters by name: {error}"
        ) from None


def _check_varied(name: str, columns: Sequence[str], runs: Runs) -> None:
    """Raise UserError for a column of one value, whose effect no fit can tell from that of other terms."""
    for column in columns:
        first = float(runs[column][0])
        if (runs[column] == first).all():
            raise UserError(
                f"{name}: {column} is {first:g} in every run; expected runs at several, or parameters held by `fix`"
            )


def _predict(
    law: Declared, fitted: CurveFit, point: Mapping[str, float], runs: Runs
) -> tuple[list[dict[str, Any]], list[str]]:
    """Predict the loss at a point, and warn of what lies far outside the data."""
    at = columns_at(law.name, law.columns, law.at_most, point)
    known = {
        given: runs[column] for given in point for column in SYMBOLS.get(given, (given,))
        if column in law.columns
    }  # fmt: skip
    return [{**point, **fitted.estimate_at("loss", at)}], extrapolation_warnings(law.name, point, known)
