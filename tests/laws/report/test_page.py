"""The HTML report: everything in one file, the verdict first, nothing unescaped."""

import re

import numpy as np
import pytest

from hybridtron.laws.law import Law
from hybridtron.laws.report.page import html_report
from hybridtron.laws.report.plots import draw
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import html_number

X = np.geomspace(1e18, 1e21, 9)
LAW = Law("parametric", "L = E + A/N^alpha", ("n_params", "loss"), ("E", "alpha"), fit=lambda runs, settings: FIT)
FIT = Fit(
    law="parametric",
    parameters={"E": 1.8172, "alpha": 0.3473},
    objective=0.0010182,
    n_points=240,
    n_groups=22,
    intervals={"E": [1.77, 1.87], "alpha": [0.31, 0.37]},
    settings={"seed": 0, "data": {"sources": ["runs <b>.csv"], "where": [["in_fit", "1"]]}},
    sensitivity={"delta": {"inf": {"E": 1.86, "alpha": 0.36}}, "without_far_points": {"rows": 5}},
    predictions=[{"N": 7e10, "loss": 1.973, "loss_interval": [1.949, 2.002]}],
    warnings=["extrapolation: C = 1e+24 lies 77x outside the data"],
    version="0.1.0",
    search={"starts": 4500, "starts_at_optimum": 48},
    extrapolation={"mean_absolute_relative_error": 0.0101, "observed": list(np.linspace(2, 3, 24))},
    verdict=["Loss falls as N^-0.3473.", "Equal proportion is compatible with these data."],
    summary=LAW.summary,
    curves=[Series("Loss against compute", "runs", "points", X, 2 + X**-0.1, "FLOPs", "loss")],
)


@pytest.fixture(scope="module")
def page():
    return html_report(FIT, draw(FIT.curves))


def without(**changes) -> str:
    from dataclasses import replace

    return html_report(replace(FIT, **changes), {})


def test_the_page_needs_nothing_from_elsewhere(page):
    assert re.findall(r"""(?:src|href)="(?!data:|#)[^"]*""", page) == []
    assert "<script" not in page
    assert "url(" not in page


def test_sections_stand_in_the_order_in_which_they_matter(page):
    names = [
        "verdict",
        "plots",
        "parameters",
        "predictions",
        "sensitivity",
        "extrapolation-check",
        "warnings",
        "settings",
    ]
    places = [page.index(f'id="{name}"') for name in names]
    assert places == sorted(places)


def test_every_plot_is_inside(page):
    assert page.count("data:image/png;base64,") == 1
    assert 'alt="Loss against compute: loss against FLOPs; points: runs"' in page


def test_parameters_come_with_their_intervals(page):
    assert "<td>1.8172</td><td>1.77 to 1.87</td>" in page


def test_refused_intervals_are_said_to_be_missing():
    page = without(intervals=None)
    assert "no intervals" in page
    assert page.count("not given") == 2


def test_other_choices_stand_below_the_parameters_of_this_fit(page):
    table = page[page.index('id="sensitivity"') :]
    assert table.index("this fit") < table.index("delta inf") < table.index("1.86")


def test_a_prediction_carries_its_interval(page):
    assert "<td>1.973<small>1.949 to 2.002</small></td>" in page


def test_the_number_of_warnings_is_said_at_the_top_and_leads_to_them(page):
    assert '<a class="chip warn" href="#warnings">1 warning</a>' in page
    assert '<span class="chip warn">extrapolation</span> C = 1e+24 lies 77x' in page
    assert "<p>None.</p>" in without(warnings=[])


def test_a_skipped_extrapolation_check_is_said(page):
    assert "Not made" not in page
    assert "Not made" in without(extrapolation=None)


def test_text_from_the_data_cannot_become_markup(page):
    assert "runs &lt;b&gt;.csv" in page
    assert "<b>" not in page


def test_exponents_are_raised(page):
    assert "N<sup>-0.3473</sup>." in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (True, "yes"),
        (4500, "4,500"),
        (-0.25, "−0.25"),
        (1.23456e24, "1.235 × 10<sup>24</sup>"),
        (4e-5, "4 × 10<sup>−5</sup>"),
        (2143.4173, "2,143"),
        (0.0, "0"),
    ],
)
def test_numbers_read_well(value, text):
    assert html_number(value) == text
