"""N_opt = k_N C^a and D_opt = k_D C^b from the loss minimum of each compute budget (Hoffmann et al. 2022, approach 2).

N_opt and D_opt are read from their own parabolas (in log N and in log D) and fitted separately: b is never 1 - a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Settings
from hybridtron.laws.families.sentences import held_out_sentence, interval_sentence
from hybridtron.laws.fitting.parabola import OPTIONS, Axis, MinimaFit, complete_parabola_fit
from hybridtron.reporting.numbers import significant

AXES = {
    "N": Axis("n_params", "a", "k_N", "compute-optimal parameters"),
    "D": Axis("tokens", "b", "k_D", "compute-optimal tokens"),
}


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options.

    Raises:
        UserError: when fewer than two budgets have a minimum inside their data.
    """
    result = complete_parabola_fit(
        LAW,
        runs,
        settings,
        AXES,
        windows=lambda window: sorted({2.0, 3.0, 4.0, 6.0, 10.0, math.inf} - {window}),
        objective="squared residual of loss about the parabola in log N, summed over rows of the kept budgets",
        search=_search,
        verdict=_verdict,
        panel="parabolas",
        x_label="parameters N",
        derive=lambda entry: {"M": entry["D"] / entry["N"]},
    )
    if "arch" in runs and runs["arch"].dtype == object and len(set(runs["arch"])) > 1:
        pooled = "pooled: rows of several architectures share one parabola; select one with where = arch=NAME"
        return replace(result, warnings=[*result.warnings, pooled])
    return result


def _search(fits: Mapping[str, MinimaFit]) -> dict[str, Any]:
    budgets = [
        {"flops": n.budget, "N_opt": n.x, "D_opt": d.x, "loss": n.loss, "rows_in_window": len(n.rows),
         "kept_N": n.kept, "kept_D": d.kept, "reason": n.reason or d.reason}
        for n, d in zip(fits["N"].minima, fits["D"].minima, strict=True)
    ]  # fmt: skip
    return {"budgets": budgets, "scatter_about_the_line": {axis: fitted.scatter for axis, fitted in fits.items()}}


def _verdict(fits: Mapping[str, MinimaFit], held: dict[str, Any] | None) -> list[str]:
    n, d = fits["N"], fits["D"]
    spans = {axis: (fitted.power.intervals or {}).get("exponent") for axis, fitted in fits.items()}
    sentences = [
        interval_sentence("The compute-optimal model size grows as C^a with a", n.power.exponent, spans["N"]),
        interval_sentence("The compute-optimal number of tokens grows as C^b with b", d.power.exponent, spans["D"]),
    ]
    dropped = [minimum for minimum in n.minima if not minimum.kept]
    sentences.append(
        f"{len(n.kept)} of {len(n.minima)} budgets have a minimum that can be used"
        + (f"; dropped: {', '.join(significant(one.budget) for one in dropped[:8])}" if dropped else "")
        + (f" and {len(dropped) - 8} more." if len(dropped) > 8 else ".")
    )
    if (span := spans["N"]) is not None:
        inside = span[0] <= 0.5 <= span[1]
        sentences.append(
            "Equal growth of parameters and tokens (a = 0.5) is "
            + ("compatible with these data." if inside else "outside the interval.")
        )
    return sentences + held_out_sentence(held, "compute-optimal model size")


LAW = Law(
    name="isoflop",
    summary="N_opt = k_N C^a and D_opt = k_D C^b from a local parabola in log N (log D) for each compute budget",
    columns=("n_params", "tokens", "flops", "loss"),
    parameters=("a", "b", "k_N", "k_D"),
    ignores=("delta",),
    fit=fit,
    options=OPTIONS,
)
