"""L = E + A N_eff^-alpha + B D^-beta, N_eff = N prod(1 - exp(-P_i / gamma_i)): training at P_i bits (2411.04330).

The product goes over weights, activations and the key-value cache, as far as the runs give their bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.formula import FormulaLaw, formula_law
from hybridtron.laws.law import Settings
from hybridtron.laws.result import Fit

BITS = {"weight_bits": "gamma_w", "activation_bits": "gamma_a", "kv_bits": "gamma_kv"}


def loss(*, n_params: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, **precision: Any) -> Any:
    """Compute nats per token; `precision` holds columns of bits and their gammas."""
    effective = n_params
    for bits, gamma in BITS.items():
        if bits in precision:
            effective = effective * (1 - np.exp(-precision[bits] / precision[gamma]))
    return E + A * effective**-alpha + B * tokens**-beta


def law_of(*bits: str) -> FormulaLaw:
    """Declare the law over these columns of bits."""
    sizes = {"E": (0.0, 10.0), "A": (1e-4, 10.0), "alpha": (0.0, 2.0), "B": (1e-4, 10.0), "beta": (0.0, 2.0)}
    gammas = [BITS[column] for column in bits]
    return formula_law(
        "precision",
        "L = E + A N_eff^-alpha + B D^-beta, N_eff = N prod(1 - exp(-P_i/gamma_i)): training at P_i bits",
        loss,
        columns=("n_params", "tokens", *bits),
        bounds=sizes | dict.fromkeys(gammas, (0.05, 30.0)),
        log_scale=("A", "B", *gammas),
        anchors={"A": ("n_params", "alpha"), "B": ("tokens", "beta")},
        tested=dict.fromkeys(gammas, ()),
        size=lambda runs: runs["n_params"] * runs["tokens"],
        across=(bits[0], "n_params"),
    )


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law over the columns of bits that are there; raises UserError where there is none."""
    if not (present := [column for column in BITS if column in runs]):
        raise UserError(f"{runs.source}: precision needs a column of bits; expected some of {', '.join(BITS)}")
    return law_of(*present).fit(runs, settings)


LAW = replace(law_of(*BITS), columns=("n_params", "tokens", "loss"), optional_columns=tuple(BITS), fit=fit)
