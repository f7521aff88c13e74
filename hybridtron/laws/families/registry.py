"""Every law by its name.

To add a law that is one formula, give the formula, its bounds and its name to `formula.formula_law`, and list its
module here; `loss/outer_exponent.py` is a whole example. A law of another kind is a file with a
`fit(runs, settings) -> Fit` and a `Law` that declares its columns, parameters and options.
"""

from __future__ import annotations

from hybridtron.laws.families.loss import (
    data_repetition,
    depth_width,
    hybrid_ratio,
    outer_exponent,
    overtraining,
    parametric,
    precision,
)
from hybridtron.laws.families.moe import fine_grained, optimal_sparsity, routed_moe, sparse
from hybridtron.laws.families.optima import isoflop, learning_rate, state_optimal, step
from hybridtron.laws.families.scores import downstream, proxy
from hybridtron.laws.law import Law

_MODULES = (
    parametric,
    isoflop,
    overtraining,
    state_optimal,
    downstream,
    proxy,
    depth_width,
    learning_rate,
    step,
    outer_exponent,
    hybrid_ratio,
    data_repetition,
    routed_moe,
    sparse,
    optimal_sparsity,
    fine_grained,
    precision,
)
LAWS: dict[str, Law] = {module.LAW.name: module.LAW for module in _MODULES}
