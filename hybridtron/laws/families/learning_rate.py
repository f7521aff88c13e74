"""lr_opt = k C^s: the best learning rate against compute, from the loss minimum of each budget's learning-rate sweep.

The form of the DeepSeek LLM report (2401.02954, section 3.1). Each budget's loss is fitted by a local parabola in
log learning rate, as `isoflop` does in log N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Settings
from hybridtron.laws.families.sentences import held_out_sentence, interval_sentence
from hybridtron.laws.fitting.parabola import OPTIONS, Axis, MinimaFit, complete_parabola_fit

AXES = {"learning_rate": Axis("learning_rate", "s", "k", "best learning rate")}


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options.

    Raises:
        UserError: when fewer than two budgets have a minimum inside their sweep.
    """
    return complete_parabola_fit(
        LAW,
        runs,
        settings,
        AXES,
        windows=lambda window: [other for other in (window / 2, window * 2) if other > 1],
        objective="squared residual of loss about the parabolas in log learning rate, summed",
        search=_search,
        verdict=_verdict,
        panel="sweeps",
        x_label="learning rate",
    )


def _search(fits: Mapping[str, MinimaFit]) -> dict[str, Any]:
    fitted = fits["learning_rate"]
    budgets = [
        {"flops": one.budget, "learning_rate": one.x, "loss": one.loss, "kept": one.kept, "reason": one.reason}
        for one in fitted.minima
    ]
    return {"budgets": budgets, "scatter_about_the_line": fitted.scatter}


def _verdict(fits: Mapping[str, MinimaFit], held: dict[str, Any] | None) -> list[str]:
    power = fits["learning_rate"].power
    span = (power.intervals or {}).get("exponent")
    return [
        interval_sentence("The best learning rate changes as C^s with s", power.exponent, span),
        *held_out_sentence(held, "best learning rate"),
    ]


LAW = Law(
    name="learning-rate",
    summary="lr_opt = k C^s: best learning rate against compute, from a local parabola in log lr for each budget",
    columns=("learning_rate", "flops", "loss"),
    parameters=("s", "k"),
    fit=fit,
    ignores=("delta",),
    options={**OPTIONS, "window": (8.0, OPTIONS["window"][1])},
)
