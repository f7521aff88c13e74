"""perplexity* = G M^c at compute-optimal points, M the total state in elements (MAD, 2403.17844).

Every architecture's budgets are reduced to their compute-optimal point by the valley of loss in log N, with the state
read at that N; then a straight line of log perplexity* in log M, for each architecture and for all together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import hybridtron
from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Series, Settings, record
from hybridtron.laws.fitting import bootstrap
from hybridtron.laws.fitting.loss_minima import FEWEST, find_valley, split_budgets
from hybridtron.laws.fitting.optimize import Array
from hybridtron.laws.report.wording import held_out_sentence, interval_sentence, not_held_out, number

WINDOW = 4.0
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
    window = float(settings.options.get("window", WINDOW))
    if not window > 1:
        raise UserError(f"option window={window:g}; expected a factor above 1")
    optimal, warnings = compute_optimal_points(runs, window, settings.group)
    if len(optimal) < 2 or len({point.state for point in optimal}) < 2:
        raise UserError(f"{runs.source}: {len(optimal)} compute-optimal points; expected two or more of different state"
                        + (f" ({'; '.join(warnings)})" if warnings else ""))  # fmt: skip
    single = sum(point.how == "single run" for point in optimal)
    if 0 < single < len(optimal):
        warnings.append(
            f"single runs: {single} of {len(optimal)} points are budgets of one run, taken as compute-optimal as they "
            "stand; does column flops hold the nominal budget of each run?"
        )
    context, declared = _context(runs, settings)
    if context is None:
        warnings.append(
            "context: the context length that attention's state assumes is not declared; give option context, or a "
            "column state_context"
        )
    x, y = (np.array([getattr(point, name) for point in optimal]) for name in ("state", "log_perplexity"))
    x = np.log(x)
    labels = _labels(optimal)
    c, log_g, residual, leverage = _line(x, y)
    samples, reason = _resample(x, y, residual, leverage, labels, settings)
    if reason:
        warnings.append(reason)
    freedom = len(np.unique(labels)) - 2
    intervals = None if samples is None else _intervals(samples, freedom)
    architectures, shared = _per_architecture(optimal, settings)
    table: dict[str, Any] = {"architectures": architectures, "shared_exponent": shared, "window": {}}
    for other in (2.0, 8.0, math.inf):
        points, _ = compute_optimal_points(runs, other)
        if len({p.state for p in points}) >= 2:
            one = _line(np.log([p.state for p in points]), np.array([p.log_perplexity for p in points]))
            table["window"][f"{other:g}"] = {"c": one[0], "G": math.exp(one[1])}
    if shared is not None and intervals is not None and not intervals["c"][0] <= shared["c"] <= intervals["c"][1]:
        warnings.append(
            f"architectures: within architectures c is {shared['c']:.4g}, across all points {c:.4g}; the joint law "
            "mixes differences between architectures with the effect of state"
        )
    held = _hold_out(optimal, settings)
    warnings += not_held_out(settings, held, f"{len(optimal)} compute-optimal points")
    predictions = []
    for point in settings.predict:
        if set(point) != {"M"} or not point["M"] > 0:
            raise UserError(f"predict = {dict(point)}: state-optimal predicts from total state; expected M=ELEMENTS")
        log_m = math.log(point["M"])
        span = None if samples is None else bootstrap.residual_interval(samples[:, 1] + samples[:, 0] * log_m, freedom)
        predictions.append({"M": point["M"], "perplexity": math.exp(log_g + c * log_m),
                            "perplexity_interval": span and [math.exp(v) for v in span]})  # fmt: skip
        factor = max(point["M"] / math.exp(x.max()), math.exp(x.min()) / point["M"])
        if factor > 10:
            warnings.append(f"extrapolation: M = {point['M']:.3g} lies {factor:.3g}x outside the data")
    return Fit(
        law="state-optimal",
        parameters={"c": c, "G": math.exp(log_g)},
        objective=float((residual**2).sum()),
        n_points=len(runs),
        n_groups=len(np.unique(labels)),
        intervals=intervals,
        settings=record(
            settings,
            window=window,
            context=context,
            objective="squared residual of log perplexity* about the line in log M, summed over compute-optimal points",
        ),
        sensitivity=table,
        predictions=predictions,
        warnings=warnings,
        version=hybridtron.__version__,
        search={
            "compute_optimal_points": [
                {name: value for name, value in vars(point).items() if name != "members"}
                | {"perplexity": math.exp(point.log_perplexity)}
                for point in optimal
            ]
        },
        extrapolation=held,
        verdict=_verdict(c, intervals, optimal, declared, shared)
        + held_out_sentence(held, "compute-optimal perplexity"),
        curves=_curves(optimal, c, log_g, samples),
    )


def compute_optimal_points(
    runs: Runs, window: float, group: str | None = None
) -> tuple[list[Point], list[str]]:  # fmt: skip
    """The compute-optimal point of each architecture and budget, and what was left out.

    A budget of one run is taken as a compute-optimal point already; two or three runs give no valley and are dropped.
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
                warnings.append(f"few points: {len(rows)} runs give no valley ({where}, dropped)")
                continue
            valley = find_valley(budget, table["n_params"], table["loss"], rows, window)
            if not valley.kept:
                warnings.append(f"{valley.reason} ({where}, dropped)")
                continue
            near = valley.rows
            sizes, levels = np.log(table["n_params"][near]), np.log(state[near])
            at = np.polyfit(sizes - valley.centre, levels, 2 if len(np.unique(sizes)) > 3 else 1)
            log_state = float(np.polyval(at, math.log(valley.x) - valley.centre))
            found.append(Point(arch, budget, math.exp(log_state), valley.loss, valley.x, "valley",
                               frozenset(names[near])))  # fmt: skip
    return found, warnings


def _context(runs: Runs, settings: Settings) -> tuple[float | None, str]:
    value = settings.options.get("context")
    if value is not None:
        return float(value), f"Attention's state is counted at a context of {float(value):g} tokens, as declared."
    if "state_context" in runs:
        lengths = np.unique(runs["state_context"])
        if len(lengths) == 1:
            return float(lengths[0]), f"Attention's state is counted at a context of {lengths[0]:g} tokens."
        return None, "The runs count attention's state at different context lengths; their states are not comparable."
    return None, "The context length that attention's state assumes is not declared, so M cannot be compared elsewhere."


def _labels(optimal: list[Point]) -> Any:
    """Number of the independent set of each point: points that share a run, or that others link, are one set."""
    sets: list[frozenset[str]] = []
    for point in optimal:
        linked = [one for one in sets if one & point.members]
        sets = [one for one in sets if one not in linked] + [point.members.union(*linked)]
    return np.array([next(i for i, one in enumerate(sets) if point.members <= one) for point in optimal])


def _line(x: Array, y: Array) -> tuple[float, float, Array, Array]:
    """Slope, offset, residuals and leverages of a straight line."""
    u = x - x.mean()
    slope = float(u @ y / (u @ u))
    offset = float(y.mean() - slope * x.mean())
    return slope, offset, y - offset - slope * x, 1 / len(x) + u**2 / (u @ u)


def _resample(
    x: Array, y: Array, residual: Array, leverage: Array, labels: Any, settings: Settings
) -> tuple[Array | None, str | None]:  # fmt: skip
    """Slopes and offsets under redrawn residuals, [count, 2], or why there are none."""
    count = len(np.unique(labels))
    if count < FEWEST_POINTS:
        return None, (f"few points: no intervals, {count} independent compute-optimal points leave {max(count - 2, 0)} "
                      f"degrees of freedom; at least {FEWEST_POINTS} are needed")  # fmt: skip
    if not settings.bootstrap:
        return None, None
    rng = np.random.default_rng([settings.seed, 6])
    noise = residual / np.sqrt(np.maximum(1 - leverage, 0.05))
    fitted = y - residual
    if count < len(x):
        drawn = fitted + noise * bootstrap.signs(rng, settings.bootstrap, count)[:, labels]
    else:
        drawn = fitted + rng.choice(noise - noise.mean(), (settings.bootstrap, len(x)))
    u = x - x.mean()
    slopes = drawn @ u / (u @ u)
    return np.stack([slopes, drawn.mean(axis=1) - slopes * x.mean()], axis=1), None


def _intervals(samples: Array, freedom: int) -> dict[str, list[float]]:
    c = bootstrap.residual_interval(samples[:, 0], freedom)
    return {"c": c, "G": [math.exp(v) for v in bootstrap.residual_interval(samples[:, 1], freedom)]}


def _per_architecture(
    optimal: list[Point], settings: Settings
) -> tuple[dict[str, Any], dict[str, float] | None]:  # fmt: skip
    """Each architecture's own line, and the exponent that they share when each has its own G."""
    names = list(dict.fromkeys(point.arch for point in optimal))
    table: dict[str, Any] = {}
    top = bottom = 0.0
    for name in names:
        mine = [point for point in optimal if point.arch == name]
        x = np.log([point.state for point in mine])
        y = np.array([point.log_perplexity for point in mine])
        if len(mine) < 2 or np.ptp(x) == 0:
            table[name] = {"points": len(mine), "reason": "fewer than two compute-optimal points of different state"}
            continue
        slope, offset, residual, leverage = _line(x, y)
        samples, reason = _resample(x, y, residual, leverage, np.arange(len(x)), settings)
        table[name] = {
            "points": len(mine), "parameters": {"c": slope, "G": math.exp(offset)},
            "intervals": None if samples is None else _intervals(samples, len(x) - 2), "reason": reason,
        }  # fmt: skip
        u = x - x.mean()
        top, bottom = top + float(u @ y), bottom + float(u @ u)
    return table, ({"c": top / bottom} if len(names) > 1 and bottom > 0 else None)


def _hold_out(optimal: list[Point], settings: Settings) -> dict[str, Any] | None:
    count = settings.holdout if settings.holdout is not None else max(1, round(len(optimal) / 10))
    if count <= 0 or len(optimal) - count < 4:
        return None
    ordered = sorted(optimal, key=lambda point: point.state)
    rest, held = ordered[:-count], ordered[-count:]
    c, log_g, _, _ = _line(np.log([p.state for p in rest]), np.array([p.log_perplexity for p in rest]))
    error = np.array([math.exp(log_g + c * math.log(p.state) - p.log_perplexity) - 1 for p in held])
    return {
        "held_out": count, "by": "total state", "largest_fitted": rest[-1].state, "largest_held_out": held[-1].state,
        "mean_relative_error": float(error.mean()), "mean_absolute_relative_error": float(np.abs(error).mean()),
        "worst_relative_error": float(error[np.argmax(np.abs(error))]),
        "parameters_without": {"c": c, "G": math.exp(log_g)},
    }  # fmt: skip


def _verdict(
    c: float, intervals: Mapping[str, list[float]] | None, optimal: list[Point], declared: str,
    shared: Mapping[str, float] | None,
) -> list[str]:  # fmt: skip
    span = intervals["c"] if intervals else None
    sentences = [interval_sentence("Compute-optimal perplexity changes with total state as M^c, c", c, span), declared]
    if all(point.how == "single run" for point in optimal):
        sentences.append("Each budget has one run: that it is compute-optimal is taken from the data, not shown by it.")
    if span is not None and span[0] <= 0 <= span[1]:
        sentences.append("The interval includes zero: these data do not show that more state helps.")
    if shared is not None:
        sentences.append(f"Within architectures, each with its own G, the exponent is {number(shared['c'])}.")
    elif len({point.arch for point in optimal}) == 1:
        sentences.append("There is one architecture: nothing is said about state across architectures.")
    return sentences


def _curves(optimal: list[Point], c: float, log_g: float, samples: Array | None) -> list[Series]:
    axes: dict[str, Any] = {
        "x_label": "total state M (elements)",
        "y_label": "compute-optimal perplexity",
        "y_log": True,
    }
    panel = "perplexity against state"
    curves = []
    for name in dict.fromkeys(point.arch for point in optimal):
        mine = [point for point in optimal if point.arch == name]
        state, perplexity = np.array([p.state for p in mine]), np.exp([p.log_perplexity for p in mine])
        curves.append(Series(panel, name, "points", state, perplexity, **axes))
    x = np.geomspace(min(p.state for p in optimal), max(p.state for p in optimal), 60)
    low = high = None
    if samples is not None:
        drawn = samples[:, 1:] + samples[:, :1] * np.log(x)
        low, high = np.exp(np.quantile(drawn, [0.025, 0.975], axis=0))
    curves.append(Series(panel, f"M^{c:.3g}", "line", x, np.exp(log_g + c * np.log(x)), low=low, high=high, **axes))
    return curves


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
        "window": (WINDOW, "rows within this factor of a budget's minimum are fitted; inf takes all"),
    },
)
