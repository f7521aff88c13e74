"""The precision law over the columns of bits that there are."""

from __future__ import annotations

import pytest

from hybridtron.errors import UserError
from hybridtron.laws import fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import precision
from tests.laws import planted
from tests.laws.planted_formulas import LAWS as PLANTED

QUICK = {"bootstrap": 0, "holdout": 0}


def test_precision_takes_the_bits_that_there_are():
    runs = PLANTED["precision"].runs(5, 0.0)
    only = runs.columns | {"loss": 0 * runs["loss"]}
    kept = {name: only[name] for name in ("n_params", "tokens", "weight_bits")}
    truth = {name: value for name, value in PLANTED["precision"].truth.items() if name not in ("gamma_a", "gamma_kv")}
    found = fit("precision", kept | {"loss": precision.loss(**kept, **truth)}, predict="N=1B,D=2e10,P=4", **QUICK)
    assert found.parameters == pytest.approx(truth, rel=1e-3)
    with pytest.raises(UserError, match="precision needs a column of bits; expected some of weight_bits, activation_"):
        fit("precision", planted.parametric_runs(1, 0.003), **QUICK)


def test_what_is_missing_of_a_point_is_named_as_the_rest_was_given():
    runs = PLANTED["precision"].runs(3, 1e-3, n=40)
    with pytest.raises(UserError, match=r"weight_bits=4: activation_bits, kv_bits missing"):
        fit("precision", runs, predict="N=1B,D=20B,weight_bits=4", **QUICK)
    weights = Runs.of("data", **{name: runs[name] for name in ("n_params", "tokens", "weight_bits", "loss")})
    with pytest.raises(UserError, match=r"does not know 'kv_bits' .*; expected N, D, P \(weight_bits\)$"):
        fit("precision", weights, predict="N=1B,D=20B,weight_bits=4,kv_bits=4", **QUICK)
    with pytest.raises(UserError, match=r": P missing; precision needs N, D, P \(weight_bits\)$"):
        fit("precision", weights, predict="N=1B,D=20B", **QUICK)
