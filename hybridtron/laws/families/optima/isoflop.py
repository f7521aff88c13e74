"""N_opt = k_N C^a and D_opt = k_D C^b from the loss minimum of each compute budget (Hoffmann et al. 2022, approach 2).

N_opt and D_opt are read from their own parabolas (in log N and in log D) and fitted separately: b is never 1 - a.
"""

from __future__ import annotations

import math

from hybridtron.laws.families.optima.parabola_bias import parabola_bias
from hybridtron.laws.fitting.minima.minima_fit import Axis
from hybridtron.laws.fitting.minima.parabolas import Parabolas

LAW = Parabolas(
    name="isoflop",
    summary="N_opt = k_N C^a and D_opt = k_D C^b from a local parabola in log N (log D) for each compute budget",
    axes={
        "N": Axis("n_params", "a", "k_N", "compute-optimal parameters"),
        "D": Axis("tokens", "b", "k_D", "compute-optimal tokens"),
    },
    window=4.0,
    windows=lambda window: sorted({2.0, 3.0, 4.0, 6.0, 10.0, math.inf} - {window}),
    objective="squared residual of loss about the parabola in log N, summed over rows of the kept budgets",
    budget=lambda n, d: {
        "flops": n.budget, "N_opt": n.x, "D_opt": d.x, "loss": n.loss, "rows_in_window": len(n.rows),
        "kept_N": n.kept, "kept_D": d.kept, "reason": n.reason or d.reason,
    },
    panel="parabolas",
    x_label="parameters N",
    derive=lambda entry: {"M": entry["D"] / entry["N"]},
    cross_check=parabola_bias,
).law()  # fmt: skip
