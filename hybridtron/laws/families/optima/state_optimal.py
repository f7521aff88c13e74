"""perplexity* = G M^c at compute-optimal points, M the total state in elements (MAD, 2403.17844).

Every architecture's budgets are reduced to their compute-optimal point by the minimum of loss in log N, with the state
read at that N; then a straight line of log perplexity* in log M, for each architecture and for all together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import BUDGET_TOLERANCE, FEWEST, gather_budgets, split_budgets
from hybridtron.laws.fitting.minima.loss_minima import WINDOW, chosen_window, find_loss_minimum
from hybridtron.laws.fitting.minima.power_law import PowerLaw, fit_line, predict
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.fitting.uncertainty.extrapolation import not_held_out
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import plural

FEWEST_POINTS = 5


@dataclass(frozen=True)
class Point:
    """One compute-optimal point of one architecture."""

    arch: str
    flops: float
    state: float  # elements
    log_perplexity: float
    n_params: float
    how: str
    members: frozenset[str]  # the runs it was found from, by the group column


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options.

    Raises:
        UserError: when fewer than two compute-optimal points are left, or all have the same state.
    """
    runs, window = gather_budgets(runs, settings), chosen_window(settings, 4.0)
    optimal, warnings = compute_optimal_points(runs, window, settings.group)
    if len({point.state for point in optimal}) < 2:
        raise UserError(
            f"{runs.source}: {len(optimal)} compute-optimal points; expected two or more of different state"
            + (f" ({'; '.join(warnings)})" if warnings else "")
        )
    labels = _labels(optimal)
    power, reason = _power_law(optimal, labels, settings)
    context = _context(runs, settings)
    architectures, shared = _per_architecture(optimal, settings)
    count = max(1, round(len(optimal) / 10)) if settings.holdout is None else settings.holdout
    held = power.hold_out(count, 4, "total state")
    warnings += _warnings(optimal, power, context, shared) + ([reason] if reason else [])
    warnings += not_held_out(settings, held, f"{len(optimal)} compute-optimal points")
    predictions = [predict(LAW.name, point, "M", "ELEMENTS", {"perplexity": power}) for point in settings.predict]
    warnings += [warning for _, far in predictions for warning in far]
    return Fit(
        parameters=power.parameters,
        objective=float(((np.log(power.y) - np.log(power.at(power.x))) ** 2).sum()),
        n_points=len(runs),
        n_groups=len(np.unique(labels)),
        intervals=power.intervals or None,
        settings={"window": window, "context": context or None,
                  "objective": "squared residual of log perplexity* about the line in log M, summed over points"},
        sensitivity={"architectures": architectures, "shared_exponent": shared, "window": _windows(runs)},
        predictions=[entry for entry, _ in predictions],
        warnings=warnings,
        search={"compute_optimal_points": [_as_json(point) for point in optimal]},
        extrapolation=held,
        verdict=verdict(
            LAW.name, power.parameters, power.intervals, held=held, context=context, shared=shared,
            declared=settings.options.get("context") is not None, architectures=len(architectures),
            single_runs=all(point.how == "single run" for point in optimal),
        ),
        curves=_curves(optimal, power),
    )  # fmt: skip


def compute_optimal_points(
    runs: Runs, window: float, group: str | None = None
) -> tuple[list[Point], list[str]]:  # fmt: skip
    """Find the compute-optimal point of each architecture and budget, and what was left out.

    A budget of one run is taken as a compute-optimal point already; two or three runs give no minimum and are dropped.
    `group` is the column that names the run of each row; by default every row is a run of its own.
    """
    groups = runs.split("arch") if "arch" in runs else {"all": runs}
    found, warnings = [], []
    for arch, table in groups.items():
        own = [f"{arch} {row}" for row in range(len(table))]
        names = np.array(own) if group is None else table[group].astype(str)
        flops, state = table["flops"], table["total_state"]
        for budget, rows in split_budgets(flops):
            where = f"{arch}, budget C = {budget:.4g}"
            if len(rows) == 1:
                row = int(rows[0])
                size = float(table["n_params"][row]) if "n_params" in table else math.nan
                found.append(Point(arch, budget, float(state[row]), float(table["loss"][row]), size, "single run",
                                   frozenset(names[rows])))  # fmt: skip
                continue
            if len(rows) < FEWEST or "n_params" not in table:
                warnings.append(
                    f"few points: {plural(len(rows), 'run gives', 'runs give')} no minimum ({where}, dropped)"
                )
                continue
            minimum = find_loss_minimum(budget, table["n_params"], table["loss"], rows, window)
            if not minimum.kept:
                warnings.append(f"{minimum.reason} ({where}, dropped)")
                continue
            near = minimum.rows
            sizes, levels = np.log(table["n_params"][near]), np.log(state[near])
            at = np.polyfit(sizes - minimum.centre, levels, 2 if len(np.unique(sizes)) > 3 else 1)
            log_state = float(np.polyval(at, math.log(minimum.x) - minimum.centre))
            found.append(Point(arch, budget, math.exp(log_state), minimum.loss, minimum.x, "loss minimum",
                               frozenset(names[near])))  # fmt: skip
    return found, warnings


def _context(runs: Runs, settings: Settings) -> float | None:
    """Return the context length at which attention's state is counted; 0 when runs differ, None when unknown."""
    if settings.options.get("context") is not None:
        return float(settings.options["context"])
    lengths = set(runs.columns.get("state_context", ()))
    return None if not lengths else float(*lengths) if len(lengths) == 1 else 0.0


def _labels(optimal: list[Point]) -> Any:
    """Number the independent set of each point: points that share a run, or that others link, are one set."""
    sets: list[frozenset[str]] = []
    for point in optimal:
        linked = [one for one in sets if one & point.members]
        sets = [one for one in sets if one not in linked] + [point.members.union(*linked)]
    return np.array([next(i for i, one in enumerate(sets) if point.members <= one) for point in optimal])


def _power_law(optimal: Sequence[Point], labels: Any, settings: Settings) -> tuple[PowerLaw, str | None]:
    """Fit the line and resample its residuals, one draw for the points of a label.

    Returns it with the reason why there are no intervals, or None.
    """
    state = np.array([point.state for point in optimal])
    log_perplexity = np.array([point.log_perplexity for point in optimal])
    x, count = np.log(state), len(np.unique(labels))
    slope, offset = (float(value) for value in fit_line(x, log_perplexity))
    spread = reason = None
    if count < FEWEST_POINTS:
        reason = (
            f"few points: no intervals, {count} independent compute-optimal points leave {max(count - 2, 0)} degrees "
            f"of freedom; at least {FEWEST_POINTS} are needed"
        )
    elif settings.bootstrap:
        rng = np.random.default_rng([settings.seed, 6])
        fitted, u = offset + slope * x, x - x.mean()
        leverage = 1 / len(x) + u**2 / (u @ u)
        noise = (log_perplexity - fitted) / np.sqrt(np.maximum(1 - leverage, 0.05))
        if count < len(x):
            drawn = fitted + noise * bootstrap.signs(rng, settings.bootstrap, count)[:, labels]
        else:
            drawn = fitted + rng.choice(noise - noise.mean(), (settings.bootstrap, len(x)))
        deviations = np.stack(fit_line(x, drawn), axis=1) - (slope, offset)

        def spread(weights: Array) -> list[float]:
            return bootstrap.percentiles(deviations @ weights, max(count - 2, 1))

    return PowerLaw(("c", "G"), state, np.exp(log_perplexity), slope, math.exp(offset), spread), reason


def _as_json(point: Point) -> dict[str, Any]:
    content = {name: value for name, value in vars(point).items() if name != "members"}
    return content | {"perplexity": math.exp(point.log_perplexity)}


def _warnings(
    optimal: Sequence[Point], power: PowerLaw, context: float | None, shared: Mapping[str, float] | None
) -> list[str]:  # fmt: skip
    """Warn of lone runs among budgets, of an unknown context, and of an exponent that differs within architectures."""
    warnings = []
    single = sum(point.how == "single run" for point in optimal)
    if 0 < single < len(optimal):
        warnings.append(
            f"single runs: {single} of {len(optimal)} points are budgets of one run, taken as compute-optimal as they "
            "stand; does column flops hold the nominal budget of each run?"
        )
    if not context:
        warnings.append(
            "context: the context length that attention's state assumes is not declared; give option context, or a "
            "column state_context"
        )
    span = power.intervals.get("c")
    if shared is not None and span is not None and not span[0] <= shared["c"] <= span[1]:
        warnings.append(
            f"architectures: within architectures c is {shared['c']:.4g}, across all points {power.exponent:.4g}; the "
            "joint law mixes differences between architectures with the effect of state"
        )
    return warnings


def _windows(runs: Runs) -> dict[str, dict[str, float]]:
    """Return the parameters under other windows."""
    table = {}
    for window in (2.0, 8.0, math.inf):
        optimal, _ = compute_optimal_points(runs, window)
        if len({point.state for point in optimal}) >= 2:
            power, _ = _power_law(optimal, np.arange(len(optimal)), Settings(bootstrap=0))
            table[f"{window:g}"] = power.parameters
    return table


def _per_architecture(
    optimal: Sequence[Point], settings: Settings
) -> tuple[dict[str, Any], dict[str, float] | None]:  # fmt: skip
    """Fit each architecture's own line, and the exponent that they share when each has its own G."""
    names = list(dict.fromkeys(point.arch for point in optimal))
    table: dict[str, Any] = {}
    top = bottom = 0.0
    for name in names:
        mine = [point for point in optimal if point.arch == name]
        if len({point.state for point in mine}) < 2:
            table[name] = {"points": len(mine), "reason": "fewer than two compute-optimal points of different state"}
            continue
        power, reason = _power_law(mine, np.arange(len(mine)), settings)
        table[name] = {"points": len(mine), "parameters": power.parameters, "intervals": power.intervals or None,
                       "reason": reason}  # fmt: skip
        spread = float(((np.log(power.x) - np.log(power.x).mean()) ** 2).sum())
        top, bottom = top + power.exponent * spread, bottom + spread
    return table, ({"c": top / bottom} if len(names) > 1 and bottom > 0 else None)


def _curves(optimal: Sequence[Point], power: PowerLaw) -> list[Series]:
    panel = "perplexity against state"
    axes: dict[str, Any] = {"x_label": "total state M (elements)", "y_label": "compute-optimal perplexity"}
    axes["y_log"] = True
    names = np.array([point.arch for point in optimal])
    curves = [
        Series(panel, name, "points", power.x[names == name], power.y[names == name], **axes)
        for name in dict.fromkeys(names.tolist())
    ]
    return [*curves, power.line(panel, "M", 1, axes)]


LAW = Law(
    name="state-optimal",
    summary="perplexity* = G M^c: compute-optimal perplexity against total state M, per architecture and joint",
    columns=("flops", "total_state", "loss"),
    optional_columns=("n_params", "arch", "state_context"),
    parameters=("c", "G"),
    fit=fit,
    ignores=("delta",),
    options={
        "context": (None, "context length in tokens at which attention's state was counted"),
        "window": (4.0, WINDOW),
        "budget_tolerance": BUDGET_TOLERANCE,
    },
)
