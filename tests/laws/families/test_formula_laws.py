"""The laws that are one formula: each finds the truth planted in its data and predicts from its own inputs."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from hybridtron.errors import UserError
from hybridtron.laws import LAWS, Settings, fit
from hybridtron.laws.data.points import read_points
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import depth_width, outer_exponent, precision
from hybridtron.laws.families.moe import fine_grained, optimal_sparsity, routed_moe, sparse
from hybridtron.laws.families.symbols import SYMBOLS
from hybridtron.laws.fitting.curves.curve import fit_curve
from hybridtron.laws.fitting.optimize.search import search
from tests.laws.planted_formulas import LAWS as PLANTED

QUICK = {"bootstrap": 0, "holdout": 0}


def curve_of(law: str):
    return precision.law_of(*precision.BITS).build if law == "precision" else LAWS[law].build


@pytest.mark.parametrize("law", PLANTED)
def test_noiseless_runs_give_the_truth_by_both_routes(law):
    curve = curve_of(law)(PLANTED[law].runs(1, 0.0), 1e-3)
    found = search(curve.problem, curve.starts)
    values = {name: float(value[0]) for name, value in curve.public(found.theta[None]).items()}
    assert values == pytest.approx(PLANTED[law].truth, rel=1e-6)
    assert found.second_route < 1e-9


def test_intervals_cover_the_truth():
    """One set of each law, noise of 0.3 %: as many of all intervals hold it as 95 % ones do, but for chance.

    optimal-sparsity, slow to refit, is left to `benchmarks/laws.py --coverage`.
    """
    hits = []
    for law, truth in ((law, one.truth) for law, one in PLANTED.items() if law != "optimal-sparsity"):
        spans = fit_curve(curve_of(law), PLANTED[law].runs(51, 0.003, n=100), Settings(bootstrap=100), 1e-3).intervals
        hits += [spans[name][0] <= truth[name] <= spans[name][1] for name in spans or ()]
    assert len(hits) > 35
    assert sum(hits) >= binom.ppf(1e-3, len(hits), 0.95)


@pytest.mark.parametrize("law", PLANTED)
def test_a_point_needs_every_input_of_its_law(law):
    one, point = PLANTED[law], read_points(PLANTED[law].point)[0]
    runs = one.runs(2, 0.0, n=40)
    found = fit(law, runs, predict=one.point, **QUICK)
    at = {column: np.array([value]) for name, value in point.items() for column in SYMBOLS.get(name, (name,))}
    assert found.predictions[0]["loss"] == pytest.approx(float(one.true_loss(at)[0]), rel=1e-3)
    without = ",".join(one.point.split(",")[:-1])
    missing = one.point.split(",")[-1].split("=")[0]
    with pytest.raises(UserError, match=rf"predict = .*: {missing} missing; {law} needs N") as raised:
        fit(law, runs, predict=without, **QUICK)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=f"{law} does not know 'Q' beside the others; expected N"):
        fit(law, runs, predict=one.point + ",Q=1", **QUICK)


@pytest.mark.parametrize("module", [outer_exponent, sparse, optimal_sparsity, fine_grained, routed_moe, depth_width])
def test_a_law_of_one_formula_is_a_declaration(module):
    """Statements other than imports, docstrings and the table of bounds take 30 lines at most."""
    text = Path(module.__file__).read_text()
    body = [node for node in ast.parse(text).body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)]
    lines = sum(node.end_lineno - node.lineno + 1 for node in body)
    bounds = len(module.LAW.parameters)
    assert lines - bounds <= 30


def test_a_column_of_one_value_is_refused_unless_parameters_are_held():
    runs = PLANTED["hybrid-ratio"].runs(3, 1e-3, n=40)
    constant = Runs.of("data", **{name: runs[name] for name in ("n_params", "tokens", "loss")}, ratio=[0.25] * 40)
    with pytest.raises(UserError, match=r"^hybrid-ratio: ratio is 0\.25 in every run; .* held by `fix`$"):
        fit("hybrid-ratio", constant, **QUICK)
    held = fit("hybrid-ratio", constant, fix="A1=0,A2=0,B1=0,B2=0", **QUICK)
    assert set(held.parameters) == {"E", "A", "alpha", "B", "beta"}
