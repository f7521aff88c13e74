"""The hybrid-ratio law: the share of attention layers of least loss."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from hybridtron.errors import UserError
from hybridtron.laws import fit
from tests.laws.planted_formulas import LAWS as PLANTED

QUICK = {"bootstrap": 0, "holdout": 0}


def test_a_hybrid_has_its_best_ratio_with_an_interval():
    runs = PLANTED["hybrid-ratio"].runs(3, 0.002)
    largest = int(np.argmax(runs["n_params"] * runs["tokens"]))
    at = {name: runs[name][largest] for name in ("n_params", "tokens")}
    loss, truth = PLANTED["hybrid-ratio"].loss, PLANTED["hybrid-ratio"].truth
    best = minimize_scalar(lambda r: loss(**at, ratio=r, **truth), bounds=(0, 1), method="bounded").x
    sentence = fit("hybrid-ratio", runs, bootstrap=150, holdout=0).verdict[0]
    assert "the largest run's, is at a share of attention layers r = " in sentence
    low, high = (float(end) for end in sentence.split("95 % interval ")[1].rstrip(").").split(" to "))
    assert low < best < high < low + 0.2


@pytest.mark.parametrize(
    ("kept", "words", "beyond"),
    [
        (
            lambda ratio: ratio <= 0.5,
            "the best may lie beyond",
            r"edge minimum: .* at r = 1, outside .*\(0 to 0\.5\).*above",
        ),
        (
            lambda ratio: ratio >= 0,
            "a model of one kind of layer: these data do not show that a hybrid is better",
            None,
        ),
    ],
)
def test_more_attention_that_always_helps_has_no_best_ratio_inside(kept, words, beyond):
    one = PLANTED["hybrid-ratio"]
    runs = one._replace(truth=one.truth | {"A1": -0.5, "A2": 0.0, "B1": -0.3, "B2": 0.0}).runs(3, 0.002)
    found = fit("hybrid-ratio", runs.take(kept(runs["ratio"])), bootstrap=100, holdout=0)
    assert any(words in line for line in found.verdict)
    told = [warning for warning in found.warnings if warning.startswith("edge minimum")]
    assert [bool(re.match(beyond or "", warning)) for warning in told] == ([True] if beyond else [])


def test_a_best_ratio_below_those_tried_is_told_of_and_one_between_them_is_not():
    runs = PLANTED["hybrid-ratio"].runs(3, 0.002)
    high, every = (
        fit("hybrid-ratio", part, predict="N=7B,D=140B,r=0.25", **QUICK)
        for part in (runs.take(runs["ratio"] >= 0.5), runs)
    )
    assert any("outside the ratios tried (0.5 to 1): add runs at ratios below" in warning for warning in high.warnings)
    assert "extrapolation: r = 0.25 lies outside the shares of the data (0.5 to 1)" in high.warnings
    assert not any(warning.startswith(("edge minimum", "extrapolation: r")) for warning in every.warnings)


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_is_a_share(ratio):
    runs = PLANTED["hybrid-ratio"].runs(7, 0.0, n=40)
    columns = runs.columns | {"ratio": np.where(np.arange(40) == 3, ratio, runs["ratio"])}
    with pytest.raises(UserError, match=f"row 4: ratio is {ratio}; expected a share from 0 to 1"):
        fit("hybrid-ratio", columns, **QUICK)
