"""lr_opt = k C^s: the best learning rate against compute, from the valley of each budget's learning-rate sweep.

The form of the DeepSeek LLM report (2401.02954, section 3.1). Each budget's loss is fitted by a local parabola in
log learning rate, as `isoflop` does in log N.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import hybridtron
from hybridtron.errors import UserError
from hybridtron.laws.data.points import extrapolation_warnings
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Settings, record
from hybridtron.laws.fitting.power import fit_power, hold_out, valley_curves
from hybridtron.laws.report.wording import held_out_sentence, interval_sentence, not_held_out

WINDOW = 8.0


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options.

    Raises:
        UserError: when fewer than two budgets have a minimum inside their sweep.
    """
    window = float(settings.options.get("window", WINDOW))
    if not window > 1:
        raise UserError(f"option window={window:g}; expected a factor above 1")
    power = fit_power(runs, settings, "learning_rate", window)
    warnings = list(power.warnings)
    predictions: list[dict[str, Any]] = []
    budgets = np.array([valley.budget for valley in power.kept])
    for point in settings.predict:
        if set(point) != {"C"} or not point["C"] > 0:
            raise UserError(f"predict = {dict(point)}: learning-rate predicts from a budget; expected C=FLOPS")
        flops = point["C"]
        predictions.append({
            "C": flops, "learning_rate": power.at(flops), "learning_rate_interval": power.interval_at(flops)
        })  # fmt: skip
        warnings += extrapolation_warnings(point, {"C": budgets})
    table: dict[str, dict[str, Any]] = {}
    for other in (window / 2, window * 2):
        if other > 1:
            try:
                near = fit_power(runs, Settings(bootstrap=0), "learning_rate", other)
                table[f"{other:g}"] = {"s": near.exponent, "k": near.factor}
            except UserError as error:
                table[f"{other:g}"] = {"none": str(error)}
    spans = power.intervals
    for factor, values in table.items():
        if "s" in values and (
            not spans["exponent"][0] <= values["s"] <= spans["exponent"][1]
            if spans is not None
            else abs(values["s"] - power.exponent) > 0.05
        ):
            warnings.append(f"window sensitivity: s {power.exponent:.4g} -> {values['s']:.4g} at window {factor}")
    held = hold_out(power, settings, "s", "k")
    warnings += not_held_out(settings, held, f"{len(power.kept)} budgets")
    curves = valley_curves(runs, "learning_rate", power.valleys, "sweeps", "learning rate")
    return Fit(
        law="learning-rate",
        parameters={"s": power.exponent, "k": power.factor},
        objective=power.objective,
        n_points=power.n_points,
        n_groups=power.n_groups,
        intervals=None if spans is None else {"s": spans["exponent"], "k": spans["factor"]},
        settings=record(
            settings,
            window=window,
            objective="squared residual of loss about the parabolas in log learning rate, summed",
        ),
        sensitivity={"window": table},
        predictions=predictions,
        warnings=warnings,
        version=hybridtron.__version__,
        search={
            "budgets": [
                {"flops": v.budget, "learning_rate": v.x, "loss": v.loss, "kept": v.kept, "reason": v.reason}
                for v in power.valleys
            ],
            "scatter_about_the_line": power.scatter,
        },
        extrapolation=held,
        verdict=[
            interval_sentence(
                "The best learning rate changes as C^s with s", power.exponent, spans["exponent"] if spans else None
            ),
            *held_out_sentence(held, "best learning rate"),
        ],
        curves=curves + power.curves("best learning rate", "training FLOPs", "best learning rate"),
    )


LAW = Law(
    name="learning-rate",
    summary="lr_opt = k C^s: best learning rate against compute, from a local parabola in log lr for each budget",
    columns=("learning_rate", "flops", "loss"),
    parameters=("s", "k"),
    fit=fit,
    ignores=("delta",),
    options={"window": (WINDOW, "rows within this factor of the minimum are fitted; inf takes all")},
)
