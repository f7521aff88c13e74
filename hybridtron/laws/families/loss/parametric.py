"""L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, 2203.15556, approach 3, eq. 10).

Fitted to log L as a log-sum-exp of three straight lines, which keeps every parameter on the scale of a logarithm.
The lines are anchored at the geometric mean of N and of D, so that a term's size and its exponent are nearly
independent of each other. With `architectures=offset` each architecture has its own E, A and B
and all share the exponents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.outliers import OUTLIERS
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss.exponent_differences import decide, exponent_differences
from hybridtron.laws.families.loss.parametric_by_projection import by_projection
from hybridtron.laws.fitting.curves.complete import complete_fit
from hybridtron.laws.fitting.curves.curve import Curve, CurveFit, fit_curve
from hybridtron.laws.fitting.curves.plots import measured_against_predicted
from hybridtron.laws.fitting.curves.power_sum import SLOPES, PowerSum
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.result import Fit, Series

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
    flops = _flops(runs)
    data = {"N": runs["n_params"], "D": runs["tokens"], "C": flops}
    architectures = list(runs.split("arch")) if settings.options.get("architectures") == "offset" else []
    if len(architectures) == 1:
        raise UserError(f"{runs.source}: architectures = offset: expected at least two architectures in column arch")
    comparison: dict[str, Any] = {"reference": None, "exponent_differences": None}

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
        full = points.complete(point, "parametric")
        entries = [predict_point(fitted, full, arch) for arch in architectures or [""]]
        near = {name: entries[0][name] for name in data}
        return entries, extrapolation_warnings("parametric", near, data)

    def facts(fitted: CurveFit) -> dict[str, Any]:
        if architectures:
            comparison.update(compare_architectures(runs, settings, delta, fitted, architectures))
        weak = sorted(fitted.weak & set(POWERS.exponents))
        share = None if weak else fitted.interval(lambda t: t[:, -1] / np.maximum(t[:, -2] + t[:, -1], 1e-300))
        return {"share": share, "weak": weak, "architectures": architectures, "infinity": math.inf,
                "broken": runs.broken, **comparison}  # fmt: skip

    result = complete_fit(
        "parametric", partial(build, architectures=architectures), runs, settings, delta=delta, size=flops,
        size_name="6 N D", predict_point=predict, curves=lambda fitted: _curves(runs, fitted, flops, architectures),
        check=lambda fitted: _bound_warnings(fitted, runs, architectures), facts=facts,
        cross_check=lambda fitted: by_projection(runs, fitted, architectures),
    )  # fmt: skip
    if architectures:
        return replace(result, sensitivity=result.sensitivity | {"architectures": comparison})
    return result


def _flops(runs: Runs) -> Array:
    return np.asarray(points.FLOPS_PER_PARAMETER_TOKEN * runs["n_params"] * runs["tokens"])


def parameters_of(public: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Return E, A, B, alpha and beta of one architecture; "" is all together."""
    sizes = {name: public[f"{name}[{arch}]" if arch else name] for name in POWERS.sizes}
    return sizes | {name: public[name] for name in POWERS.exponents}


def predict_point(fitted: CurveFit, point: Mapping[str, float], arch: str = "") -> dict[str, Any]:
    """Predict the loss at N and D, or the compute-optimal N, D and loss at C, each with its interval."""
    entry: dict[str, Any] = {"arch": arch} if arch else {}
    if set(point) != {"C"}:
        at = {"n_params": point["N"], "tokens": point["D"], "arch": arch}
        return {**entry, **point, **fitted.estimate_at("loss", at)}

    def optimum(theta: Array, which: int) -> Array:
        return np.asarray(compute_optimal(parameters_of(fitted.curve.public(theta), arch), point["C"])[which])

    entry |= {"C": point["C"], "compute_optimal": True}
    for i, name in enumerate(("N", "D", "loss")):
        entry |= fitted.estimate(name, partial(optimum, which=i))
    return entry | {"M": entry["D"] / entry["N"]}


def compare_architectures(
    runs: Runs, settings: Settings, delta: float, together: CurveFit, names: Sequence[str]
) -> dict[str, Any]:
    """Compare every architecture with the first: is its gain an offset or a slope, and how large is it?

    `together` shares exponents between the architectures; each is also fitted alone, and the differences of these
    separately bootstrapped exponents decide. The gain is read at compute-optimal points of the largest compute that
    both reached.
    """
    tables = runs.split("arch")
    alone = {name: fit_curve(build, table, settings, delta) for name, table in tables.items()}
    reference, *others = names
    differences = exponent_differences(alone, reference, others, settings.seed)
    for name, entry in differences.items():
        flops = min(float(_flops(tables[one]).max()) for one in (name, reference))
        entry |= _gain(together, name, reference, flops)
    decide(differences)

    def plain(fitted: CurveFit) -> dict[str, Any]:
        return {"parameters": fitted.parameters, "intervals": fitted.intervals,
                "objective": fitted.optimum.objective}  # fmt: skip

    return {"reference": reference, "shared_exponents": plain(together),
            "alone": {name: plain(fitted) for name, fitted in alone.items()},
            "exponent_differences": differences}  # fmt: skip


def _gain(fitted: CurveFit, name: str, reference: str, flops: float) -> dict[str, Any]:
    """Estimate how far an architecture's least loss at this compute lies below the reference's, and the share of the
    compute at which it reaches the reference's: both losses fall towards E as C^-(alpha beta / (alpha + beta)).
    """

    def losses(theta: Array) -> tuple[dict[str, Array], Array, Array]:
        public = fitted.curve.public(theta)
        mine = parameters_of(public, name)
        theirs = compute_optimal(parameters_of(public, reference), flops)[2]
        return mine, compute_optimal(mine, flops)[2], theirs

    def lower(theta: Array) -> Array:
        _, mine, theirs = losses(theta)
        return theirs - mine

    def compute_share(theta: Array) -> Array:
        parameters, mine, theirs = losses(theta)
        alpha, beta, floor = (parameters[key] for key in ("alpha", "beta", "E"))
        with np.errstate(all="ignore"):
            share = ((theirs - floor) / (mine - floor)) ** -((alpha + beta) / (alpha * beta))
        return np.where(theirs > floor, share, np.inf)

    return {"flops": flops, **fitted.estimate("gain", lower), **fitted.estimate("compute_share", compute_share)}


def _bound_warnings(fitted: CurveFit, runs: Runs, architectures: Sequence[str]) -> list[str]:
    theta, warnings = fitted.optimum.theta, POWERS.warnings(fitted, architectures)
    count = max(len(architectures), 1)
    for term, column in ((1, "n_params"), (2, "tokens")):
        x = np.log(runs[column])
        for g, arch in enumerate(architectures or [""]):
            rows = runs["arch"] == arch if arch else slice(None)
            size = term * count + g
            change = np.ptp(np.exp(theta[size] - theta[term - 3] * (x[rows] - x.mean())))
            if change < 3 * fitted.noise * np.median(runs["loss"][rows]) and not POWERS.vanishes(
                theta, fitted.curve.problem, size
            ):
                words = list(POWERS.sizes.values())[term] + (f" of {arch}" if arch else "")
                warnings.append(
                    f"not identified: the {words} changes less over these data than three times their noise"
                )
    return warnings


def _curves(runs: Runs, fitted: CurveFit, flops: Array, architectures: Sequence[str]) -> list[Series]:
    """Return the runs and the least loss at each compute, for each architecture in a colour of its own."""
    axes: dict[str, Any] = {"x_label": "training FLOPs (6 N D)", "y_label": "loss (nats per token)"}
    curves = []
    for arch in architectures or [""]:
        rows = runs["arch"] == arch if arch else np.ones(len(runs), bool)
        budget = np.geomspace(flops[rows].min(), flops[rows].max(), 60)

        def least(theta: Array, arch: str = arch, budget: Array = budget) -> Array:
            public = {name: value[:, None] for name, value in fitted.curve.public(theta).items()}
            return np.asarray(compute_optimal(parameters_of(public, arch), budget)[2])

        best = least(fitted.optimum.theta[None])[0]
        panel, band = "loss against compute", fitted.band(least)
        curves.append(Series(panel, arch or "runs", "points", flops[rows], runs["loss"][rows], **axes))
        curves.append(Series(panel, arch or "compute-optimal", "line", budget, best, **band, **axes))
    return curves + measured_against_predicted(fitted, "loss", runs["arch"] if architectures else None)


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
