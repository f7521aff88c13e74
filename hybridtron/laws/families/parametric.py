"""L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, 2203.15556, approach 3, eq. 10).

Fitted to log L as a log-sum-exp of three straight lines, which keeps every parameter on the scale of a logarithm.
The lines are anchored at the geometric mean of N and of D, so that a term's size and its exponent are nearly
independent of each other. With `architectures=offset` each architecture has its own E, A and B
and all share the exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Series, Settings
from hybridtron.laws.fitting import bootstrap
from hybridtron.laws.fitting.curve import (
    OUTLIERS,
    Curve,
    CurveFit,
    complete_fit,
    fit_curve,
    measured_against_predicted,
)
from hybridtron.laws.fitting.logsum import SLOPES, PowerSum
from hybridtron.laws.fitting.optimize import Array

DELTA = 1e-3
_TOGETHER = 0.999  # correlation of log parameters and log tokens beyond which they are one quantity
POWERS = PowerSum(
    coordinates=lambda columns: np.log([columns["n_params"], columns["tokens"]]),
    sizes={"E": "irreducible loss E", "A": "model-size term A/N^alpha", "B": "data term B/D^beta"},
    exponents=("alpha", "beta"),
    directions=np.array([[[0, 0], [0, 0]], [[-1, 0], [0, 0]], [[0, 0], [0, -1]]], dtype=float),
    slopes=SLOPES,
    steepest=3.0,
)


def build(runs: Runs, delta: float, architectures: Sequence[str] = ()) -> Curve:
    """Build the curve; `architectures` names the groups with their own E, A, B (none: one for all)."""
    return POWERS.build(runs, delta, groups=architectures, undetermined=_undetermined(runs))


def _undetermined(runs: Runs) -> str | None:
    """Return why log parameters and log tokens do not span a plane, or None."""
    x, y = (values - values.mean() for values in POWERS.coordinates(runs))
    for values, name in ((x, "n_params"), (y, "tokens")):
        if np.abs(values).max() < 1e-6:
            return f"all rows have the same {name}, so its term cannot be told from E"
    if abs(float(x @ y)) > _TOGETHER * math.sqrt(float(x @ x) * float(y @ y)):
        return "parameters and tokens rise together in these rows, so their terms cannot be told apart"
    return None


def compute_optimal(parameters: Mapping[str, Any], flops: Any) -> tuple[Any, Any, Any]:
    """Compute N, D and loss of the least loss at C = 6 N D (Hoffmann et al. 2022, eq. 4); nan without exponents."""
    alpha, beta = parameters["alpha"], parameters["beta"]
    total = np.asarray(alpha + beta)
    budget = np.log(flops / points.FLOPS_PER_PARAMETER_TOKEN)
    with np.errstate(all="ignore"):  # an exponent of zero has no optimum: nan
        log_g = (np.log(alpha) + np.log(parameters["A"]) - np.log(beta) - np.log(parameters["B"])) / total
        n, d = np.exp(log_g + budget * beta / total), np.exp(-log_g + budget * alpha / total)
        return n, d, parameters["E"] + parameters["A"] / n**alpha + parameters["B"] / d**beta


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options."""
    delta = DELTA if settings.delta is None else settings.delta
    choice = settings.options.get("architectures", "pool")
    flops = points.FLOPS_PER_PARAMETER_TOKEN * runs["n_params"] * runs["tokens"]
    data = {"N": runs["n_params"], "D": runs["tokens"], "C": flops}

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[dict[str, Any], list[str]]:
        entry = predict_point(fitted, points.complete(point, "parametric"))
        return entry, points.extrapolation_warnings({name: entry[name] for name in data}, data)

    result = complete_fit(
        "parametric", build, runs, settings, delta=delta, size=flops, size_name="6 N D", predict_point=predict,
        curves=lambda fitted: _curves(runs, fitted, flops), check=lambda fitted: _bound_warnings(fitted, runs),
        facts=lambda fitted: {"share": fitted.spread(lambda t: t[:, 4] / np.maximum(t[:, 3] + t[:, 4], 1e-300))},
    )  # fmt: skip
    if choice == "pool":
        return result
    comparison, sentences = compare_architectures(runs, settings, delta)
    return replace(
        result,
        sensitivity=result.sensitivity | {"architectures": comparison},
        verdict=result.verdict + sentences,
    )


def predict_point(fitted: CurveFit, point: Mapping[str, float]) -> dict[str, Any]:
    """Predict the loss at N and D, or the compute-optimal N, D and loss at C, each with its interval."""
    public = fitted.curve.public
    if set(point) == {"C"}:
        entry: dict[str, Any] = {"C": point["C"], "compute_optimal": True}
        for i, name in enumerate(("N", "D", "loss")):
            entry |= fitted.estimate(name, partial(_optimal, public, point["C"], i))
        return entry | {"M": entry["D"] / entry["N"]}
    return {**point, **fitted.estimate_at("loss", {"n_params": point["N"], "tokens": point["D"]})}


def _optimal(public: Callable[[Array], dict[str, Array]], flops: float, which: int, theta: Array) -> Array:
    optimum: tuple[Array, Array, Array] = compute_optimal(public(theta), flops)
    return optimum[which]


def compare_architectures(runs: Runs, settings: Settings, delta: float) -> tuple[dict[str, Any], list[str]]:
    """Decide whether one architecture's gain over another is an offset (shared exponents) or a slope (its own).

    Fits shared exponents with offsets for each architecture, then every architecture alone, and reads the difference
    of the separately bootstrapped exponents against the first architecture.
    """
    tables = runs.split("arch")
    if len(tables) < 2:
        raise UserError(f"{runs.source}: architectures=offset needs at least two architectures in column arch")
    names = list(tables)

    def shared(part: Runs, delta: float) -> Curve:
        return build(part, delta, names)

    together = fit_curve(shared, runs, settings, delta)
    alone = {name: fit_curve(build, table, settings, delta) for name, table in tables.items()}
    reference, sentences, differences = names[0], [], {}
    for name in names[1:]:
        entry: dict[str, Any] = {}
        for i, exponent in ((3, "alpha"), (4, "beta")):
            mine, theirs = alone[name], alone[reference]
            gap = mine.parameters[exponent] - theirs.parameters[exponent]
            span = None
            if mine.samples is not None and theirs.samples is not None:
                count = min(len(mine.samples), len(theirs.samples))
                rng = np.random.default_rng([settings.seed, 3])
                spread = mine.samples[:count, i] - rng.permutation(theirs.samples[:count, i])
                span = bootstrap.interval(spread, min(mine.n_groups, theirs.n_groups), 5)
            entry[exponent] = {"difference": gap, "interval": span}
        spans = [entry[exponent]["interval"] for exponent in ("alpha", "beta")]
        if any(span is None for span in spans):
            kind = "undecided"
            text = "too few runs to tell a slope from an offset"
        elif any(not span[0] <= 0 <= span[1] for span in spans):
            kind = "slope"
            text = "the exponents differ beyond their 95 % interval: the gain is (also) a slope"
        else:
            kind = "offset"
            text = "the data show no difference of exponents: an offset describes the gain, a slope is not supported"
        differences[name] = entry | {"kind": kind}
        sentences.append(f"{name} against {reference}: {text}.")
    return {
        "reference": reference,
        "shared_exponents": {"parameters": together.parameters, "intervals": together.intervals,
                             "objective": together.optimum.objective},
        "alone": {name: {"parameters": f.parameters, "intervals": f.intervals, "objective": f.optimum.objective}
                  for name, f in alone.items()},
        "exponent_differences": differences,
    }, sentences  # fmt: skip


def _bound_warnings(fitted: CurveFit, runs: Runs) -> list[str]:
    theta, warnings = fitted.optimum.theta, POWERS.warnings(fitted)
    for term, column in ((1, "n_params"), (2, "tokens")):
        x = np.log(runs[column])
        change = np.ptp(np.exp(theta[term] - theta[term + 2] * (x - x.mean())))
        if change < 3 * fitted.noise * np.median(runs["loss"]) and not POWERS.vanishes(fitted, term):
            words = list(POWERS.sizes.values())[term]
            warnings.append(f"not identified: the {words} changes less over these data than three times their noise")
    return warnings


def _curves(runs: Runs, fitted: CurveFit, flops: Array) -> list[Series]:
    axes: dict[str, Any] = {"x_label": "training FLOPs (6 N D)", "y_label": "loss (nats per token)"}
    budget = np.geomspace(flops.min(), flops.max(), 60)
    best = compute_optimal(fitted.parameters, budget)[2]

    def least(theta: Array) -> Array:
        public = {name: value[:, None] for name, value in fitted.curve.public(theta).items()}
        return np.asarray(compute_optimal(public, budget)[2])

    return [
        Series("loss against compute", "runs", "points", flops, runs["loss"], **axes),
        Series("loss against compute", "compute-optimal", "line", budget, best, **fitted.band(least), **axes),
        *measured_against_predicted(fitted, "loss"),
    ]


LAW = Law(
    name="parametric",
    summary="L = E + A/N^alpha + B/D^beta: loss of a model of N parameters trained on D tokens",
    columns=("n_params", "tokens", "loss"),
    optional_columns=("arch",),
    parameters=(*POWERS.sizes, *POWERS.exponents),
    fit=fit,
    options={
        "architectures": (
            "pool",
            "pool fits all runs together; offset also fits one E, A, B for each architecture",
            ("pool", "offset"),
        ),
        "outliers": OUTLIERS,
    },
)
