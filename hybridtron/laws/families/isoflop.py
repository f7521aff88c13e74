"""N_opt = k_N C^a and D_opt = k_D C^b from the valley of each compute budget (Hoffmann et al. 2022, approach 2).

N_opt and D_opt are read from their own parabolas (in log N and in log D) and fitted separately: b is never 1 - a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hybridtron
from hybridtron.errors import UserError
from hybridtron.laws.data.points import extrapolation_warnings
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Series, Settings, record
from hybridtron.laws.fitting.curve import outlier_flags
from hybridtron.laws.fitting.power import Power, fit_power, hold_out, valley_curves
from hybridtron.laws.report.wording import held_out_sentence, interval_sentence, not_held_out, number

WINDOW = 4.0
NAMES = ("a", "b", "k_N", "k_D")
_AXES = {"N": ("n_params", "a", "k_N"), "D": ("tokens", "b", "k_D")}


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options.

    Raises:
        UserError: when fewer than two budgets have a minimum inside their data.
    """
    window = _window(settings)
    powers = {axis: fit_power(runs, settings, column, window) for axis, (column, _, _) in _AXES.items()}
    parameters: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    warnings: list[str] = []
    for axis, (_, exponent, factor) in _AXES.items():
        power = powers[axis]
        parameters |= {exponent: power.exponent, factor: power.factor}
        if power.intervals is not None:
            intervals |= {exponent: power.intervals["exponent"], factor: power.intervals["factor"]}
        warnings += [warning for warning in power.warnings if warning not in warnings]
    table, more = _sensitivity(runs, settings, window, parameters, intervals)
    warnings += more
    predictions = []
    for point in settings.predict:
        entry, more = _predict(point, powers, runs)
        predictions.append(entry)
        warnings += more
    held = hold_out(powers["N"], settings, "a", "k_N")
    warnings += not_held_out(settings, held, f"{len(powers['N'].kept)} budgets")
    if "arch" in runs and runs["arch"].dtype == object and len(set(runs["arch"])) > 1:
        warnings.append("pooled: rows of several architectures share one parabola; select one with where = arch=NAME")
    power = powers["N"]
    return Fit(
        law="isoflop",
        parameters={name: parameters[name] for name in NAMES},
        objective=power.objective,
        n_points=power.n_points,
        n_groups=power.n_groups,
        intervals={name: intervals[name] for name in NAMES} if intervals else None,
        settings=record(
            settings,
            window=window,
            objective="squared residual of loss about the parabola in log N, summed over rows of the kept budgets",
        ),
        sensitivity=table,
        predictions=predictions,
        warnings=warnings,
        version=hybridtron.__version__,
        search={
            "budgets": _budgets(powers),
            "scatter_about_the_line": {axis: p.scatter for axis, p in powers.items()},
        },
        extrapolation=held,
        verdict=_verdict(powers, held),
        curves=_curves(runs, powers),
    )


def _window(settings: Settings) -> float:
    window = float(settings.options.get("window", WINDOW))
    if not window > 1:
        raise UserError(f"option window={window:g}; expected a factor above 1")
    return window


def _budgets(powers: Mapping[str, Power]) -> list[dict[str, Any]]:
    rows = []
    for n, d in zip(powers["N"].valleys, powers["D"].valleys, strict=True):
        rows.append({
            "flops": n.budget, "N_opt": n.x, "D_opt": d.x, "loss": n.loss, "rows_in_window": len(n.rows),
            "kept_N": n.kept, "kept_D": d.kept, "reason": n.reason or d.reason,
        })  # fmt: skip
    return rows


def _predict(
    point: Mapping[str, float], powers: Mapping[str, Power], runs: Runs
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    if set(point) != {"C"} or not point["C"] > 0:
        text = ",".join(f"{name}={value:g}" for name, value in point.items())
        raise UserError(f"predict = {text}: isoflop predicts from a budget; expected C=FLOPS")
    entry: dict[str, Any] = {"C": point["C"]}
    for axis, power in powers.items():
        entry[axis] = power.at(point["C"])
        entry[f"{axis}_interval"] = power.interval_at(point["C"])
    entry["M"] = entry["D"] / entry["N"]
    kept = np.array([valley.budget for valley in powers["N"].kept])
    return entry, extrapolation_warnings({"C": point["C"]}, {"C": kept})


def _sensitivity(
    runs: Runs, settings: Settings, window: float, parameters: Mapping[str, float],
    intervals: Mapping[str, list[float]],
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    table: dict[str, Any] = {"window": {}}
    warnings = []
    for other in sorted({2.0, 3.0, 4.0, 6.0, 10.0, math.inf} - {window}):
        values = _parameters(runs, other)
        table["window"][f"{other:g}"] = values or "fewer than two budgets left"
    moved = [
        f"{name} {parameters[name]:.4g} -> {values[name]:.4g} at window {other}"
        for other, values in table["window"].items()
        if isinstance(values, dict) and window / 3 <= float(other) <= window * 3
        for name in ("a", "b")
        if _left(name, values[name], parameters, intervals)
    ]
    if moved:
        warnings.append("window sensitivity: " + ", ".join(moved))
    far = _far_rows(runs, window)
    filters = {"without_far_points": ("rows beyond 4 robust standard deviations of the parabolas", far)}
    flags = outlier_flags(runs, settings)
    if flags is not None:
        filters["without_flagged"] = (f"rows flagged by column {flags[0]}", flags[1])
    for key, (rule, rows) in filters.items():
        if not rows.any():
            continue
        values = _parameters(runs.take(~rows), window)
        table[key] = {"rule": rule, "rows": int(rows.sum()), "lines": [int(x) for x in runs.lines[rows]],
                      "parameters": values or "fewer than two budgets left"}  # fmt: skip
        moved = [f"{n} {parameters[n]:.4g} -> {values[n]:.4g}" for n in ("a", "b")
                 if values and _left(n, values[n], parameters, intervals)]  # fmt: skip
        if moved:
            warnings.append(f"filter sensitivity: without {int(rows.sum())} {rule}: " + ", ".join(moved))
    return table, warnings


def _left(
    name: str, value: float, parameters: Mapping[str, float], intervals: Mapping[str, list[float]]
) -> bool:  # fmt: skip
    span = intervals.get(name)
    if span is None:
        return abs(value - parameters[name]) > 0.05
    return not span[0] <= value <= span[1]


def _parameters(runs: Runs, window: float) -> dict[str, float]:
    """Parameters alone; empty when fewer than two budgets are left."""
    settings = Settings(bootstrap=0)
    values: dict[str, float] = {}
    for column, exponent, factor in _AXES.values():
        try:
            power = fit_power(runs, settings, column, window)
        except UserError:
            return {}
        values |= {exponent: power.exponent, factor: power.factor}
    return values


def _far_rows(runs: Runs, window: float) -> NDArray[np.bool_]:
    power = fit_power(runs, Settings(bootstrap=0), "n_params", window)
    far = np.zeros(len(runs), dtype=bool)
    scaled = [valley.residual / np.sqrt(np.maximum(1 - valley.leverage, 0.05)) for valley in power.kept]
    scale = 1.4826 * float(np.median(np.abs(np.concatenate(scaled))))
    for valley, residual in zip(power.kept, scaled, strict=True):
        far[valley.rows[np.abs(residual) > 4 * max(scale, 1e-12)]] = True
    return far


def _verdict(powers: Mapping[str, Power], held: dict[str, Any] | None) -> list[str]:
    n, d = powers["N"], powers["D"]
    spans = {axis: p.intervals["exponent"] if p.intervals else None for axis, p in powers.items()}
    sentences = [
        interval_sentence("The compute-optimal model size grows as C^a with a", n.exponent, spans["N"]),
        interval_sentence("The compute-optimal number of tokens grows as C^b with b", d.exponent, spans["D"]),
    ]
    dropped = [valley for valley in n.valleys if not valley.kept]
    sentences.append(
        f"{len(n.kept)} of {len(n.valleys)} budgets have a minimum that can be used"
        + (f"; dropped: {', '.join(number(v.budget) for v in dropped[:8])}" if dropped else "")
        + (f" and {len(dropped) - 8} more." if len(dropped) > 8 else ".")
    )
    if spans["N"] is not None:
        inside = spans["N"][0] <= 0.5 <= spans["N"][1]
        sentences.append(
            "Equal growth of parameters and tokens (a = 0.5) is "
            + ("compatible with these data." if inside else "outside the interval.")
        )
    return sentences + held_out_sentence(held, "compute-optimal model size")


def _curves(runs: Runs, powers: Mapping[str, Power]) -> list[Series]:
    curves = valley_curves(runs, "n_params", powers["N"].valleys, "valleys", "parameters N")
    for axis, word in (("N", "parameters"), ("D", "tokens")):
        curves += powers[axis].curves(f"compute-optimal {word}", "training FLOPs", f"compute-optimal {word}")
    return curves


LAW = Law(
    name="isoflop",
    summary="N_opt = k_N C^a and D_opt = k_D C^b from a local parabola in log N (log D) for each compute budget",
    columns=("n_params", "tokens", "flops", "loss"),
    parameters=NAMES,
    ignores=("delta",),
    fit=fit,
    options={
        "window": (WINDOW, "rows within this factor of the minimum are fitted; inf takes all"),
        "outliers": (None, "column that flags outliers, to report how far the answer moves without them"),
    },
)
