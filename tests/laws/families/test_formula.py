"""A law of one's own from a formula: what works in it, and what is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.cli.main import main
from hybridtron.errors import UserError
from hybridtron.laws import LAWS, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.formula import formula_law
from hybridtron.laws.fitting.curves.curve import fit_curve
from hybridtron.laws.fitting.optimize.search import search
from hybridtron.laws.law import Settings

BOUNDS = {"E": (0.1, 5.0), "A": (0.01, 20.0), "alpha": (0.05, 1.5)}


def runs(noise: float = 0.0, n: int = 40) -> Runs:
    """Runs of L = 1.5 + 2 (width / 1024)^-0.6."""
    rng = np.random.default_rng(1)
    width = np.geomspace(64, 8192, n)
    return Runs.of(width=width, loss=(1.5 + 2 * (width / 1024) ** -0.6) * np.exp(noise * rng.standard_normal(n)))


def law(formula, bounds=BOUNDS, **more):
    return formula_law("mine", "L = ...", formula, ["width"], bounds, **more)


def power(width, E, A, alpha):
    return E + A * (width / 1024) ** -alpha


TRUTH = {"E": 1.5, "A": 2.0, "alpha": 0.6}
WORKING = {
    "where and a comparison": lambda width, E, A, alpha: np.where(alpha > 0, power(width, E, A, alpha), 100 + E),
    "maximum": lambda width, E, A, alpha: np.maximum(E, 0.01) + np.maximum(power(width, 0, A, alpha), 1e-9),
    "minimum of a column and a parameter": lambda width, E, A, alpha: (
        E + A * np.maximum(width / 1024, alpha / 1e6) ** -alpha
    ),
    "abs of a column": lambda width, E, A, alpha: power(np.abs(width), E, A, alpha),
    "the root of a square": lambda width, E, A, alpha: power(width, np.sqrt(E * E), A, alpha),
}


@pytest.mark.parametrize("formula", WORKING.values(), ids=WORKING)
def test_comparisons_work(formula):
    found = law(formula).fit(runs(), Settings(bootstrap=0, holdout=0))
    assert found.parameters == pytest.approx(TRUTH, rel=1e-6)


REFUSED = {
    "abs": (lambda width, E, A, alpha: power(width, E, np.abs(A), alpha), "loses the derivative by A; expected no abs"),
    "abs of a mixture": (
        lambda width, E, A, alpha: E + np.abs(A * (width / 1024) ** -alpha), "loses the derivative by A;"
    ),
    "the real part": (lambda width, E, A, alpha: power(width, E, A, alpha.real), "loses the derivative by alpha;"),
    "if": (lambda width, E, A, alpha: power(width, E if E > 1 else 1.0, A, alpha), "fails on arrays .*np.where for if"),
    "min": (lambda width, E, A, alpha: power(width, min(E, 3.0), A, alpha), "fails on arrays .*np.minimum for min"),
    "rounding": (lambda width, E, A, alpha: power(width, np.floor(E), A, alpha), "fails on arrays .*floor"),
}  # fmt: skip


@pytest.mark.parametrize(("formula", "message"), REFUSED.values(), ids=REFUSED)
def test_what_loses_a_derivative_is_refused_in_a_line(formula, message):
    with pytest.raises(UserError, match=message) as raised:
        law(formula).fit(runs(), Settings(bootstrap=0))
    assert "\n" not in str(raised.value)


def test_a_parameter_ends_at_its_bound_with_a_warning():
    narrow = law(power, BOUNDS | {"E": (0.1, 1.2)}).fit(runs(), Settings(bootstrap=0, holdout=0))
    assert narrow.parameters["E"] == 1.2
    assert "not identified: E ends at its bound 1.2" in narrow.warnings


@pytest.mark.parametrize("bounds", [(0, np.inf), (2.0, 1.0), (np.nan, 1.0), (1.0, 1.0)])
def test_bounds_that_are_no_box_are_refused(bounds):
    with pytest.raises(UserError, match=r"law mine: bounds of E are .*; expected two finite numbers, smaller first"):
        law(power, BOUNDS | {"E": bounds})


def test_a_logarithm_needs_bounds_above_zero():
    with pytest.raises(UserError, match="bounds of E are 0 and 5; expected two finite numbers above zero"):
        law(power, BOUNDS | {"E": (0.0, 5.0)}, log_scale=["E"])


@pytest.mark.parametrize("more", [{"log_scale": ["F"]}, {"tested": {"F": ()}}, {"anchors": {"A": ("width", "beta")}}])
def test_names_that_are_no_parameters_are_refused(more):
    with pytest.raises(UserError, match=r"law mine: log_scale, tested and anchors name parameters .*E, A, alpha"):
        law(power, **more)


def test_a_formula_without_a_parameter_is_refused():
    with pytest.raises(
        UserError, match=r"law mine: the formula is called with its columns and parameters by name: .*F"
    ):
        law(power, BOUNDS | {"F": (0.0, 1.0)})


def test_a_formula_below_zero_in_part_of_its_box_is_searched_where_it_is_above():
    def difference(width, E, A, alpha):
        return E - A * (1 - (width / 8192) ** -alpha)

    found = law(difference, {"E": (0.1, 5.0), "A": (0.01, 20.0), "alpha": (0.05, 1.5)})
    fitted = fit_curve(found.build, runs(0.001), Settings(bootstrap=0), 1e-3)
    assert np.abs(fitted.residual).max() < 0.01
    assert (fitted.predict({"width": runs()["width"]}) > 0).all()


def test_an_anchored_size_is_the_same_law():
    plain, anchored = (
        law(lambda width, E, A, alpha: E + A * width**-alpha, {"E": (0.1, 5), "A": box, "alpha": (0.05, 1.5)}, **more)
        for box, more in (
            ((1.0, 1e4), {"log_scale": ["A"]}),
            ((1e-3, 10.0), {"log_scale": ["A"], "anchors": {"A": ("width", "alpha")}}),
        )
    )
    values = []
    for one in (plain, anchored):
        curve = one.build(runs(0.002), 1e-3)
        theta = search(curve.problem, curve.starts).theta[None]
        values.append({name: float(value[0]) for name, value in curve.public(theta).items()})
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_a_law_is_a_formula_and_a_line_of_the_registry(monkeypatch, tmp_path):
    mine = formula_law("mine", "L = E + A (w/1024)^-alpha", power, ["width"], BOUNDS)
    monkeypatch.setitem(LAWS, "mine", mine)
    assert fit("mine", runs(0.002), bootstrap=100, predict="width=2048").predictions[0]["loss_interval"]
    table = tmp_path / "runs.csv"
    rows = zip(runs()["width"], runs()["loss"], strict=True)
    table.write_text("width,loss\n" + "".join(f"{width},{loss}\n" for width, loss in rows))
    assert main(["laws", "fit", "mine", str(table), "--out", str(tmp_path / "fit"), "--bootstrap", "0"]) == 0
    assert (tmp_path / "fit" / "report.html").exists()


@pytest.mark.parametrize(
    ("fixed", "message"),
    [("alpha=1000", "no finite loss above zero within its bounds"), ("E=1,E=2", "each name once")],
)
def test_held_values_that_mean_nothing_are_refused(fixed, message):
    tiny = runs().with_column("width", runs()["width"] * 1e9)
    with pytest.raises(UserError, match=message):
        law(lambda width, E, A, alpha: E + A * width**alpha).fit(tiny, Settings(options={"fix": fixed}))


def test_a_share_is_predicted_from_zero_to_one():
    rng = np.random.default_rng(2)
    share = rng.uniform(0.1, 0.9, 40)
    table = Runs.of(ratio=share, loss=2 + 0.5 * share**2)
    mixed = formula_law("mine", "L = ...", lambda ratio, E, A: E + A * ratio**2, ["ratio"], {"E": (1, 3), "A": (0, 1)})
    found = mixed.fit(table, Settings(bootstrap=0, holdout=0, predict=[{"r": 0.0}]))
    assert found.predictions[0]["loss"] == pytest.approx(2.0)
    with pytest.raises(UserError, match=r"r is 1\.5; expected a share from 0 to 1"):
        mixed.fit(table, Settings(bootstrap=0, predict=[{"r": 1.5}]))
