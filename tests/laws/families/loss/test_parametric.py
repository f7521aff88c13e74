"""The parametric law: compute-optimal points, and architectures beside each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss.exponent_differences import decide
from hybridtron.laws.families.loss.parametric import compute_optimal
from tests.laws import planted


def test_compute_optimal_is_the_least_loss_of_its_budget():
    truth, flops = planted.PARAMETRIC, 1e21
    n, d, loss = compute_optimal(truth, flops)
    assert 6 * n * d == pytest.approx(flops)
    sizes = n * np.geomspace(0.5, 2, 101)
    assert loss <= planted.parametric_loss(sizes, flops / (6 * sizes), **truth).min() * (1 + 1e-12)


def two_architectures(alpha: float = 0.34, A: float = 300.0) -> tuple[Runs, dict[str, float]]:
    """Runs of a transformer that follows `planted.PARAMETRIC` and of a hybrid, and the hybrid's truth."""
    truth = {**planted.PARAMETRIC, "A": A, "alpha": alpha}
    parts = planted.parametric_runs(1, 0.001, n=120), planted.parametric_runs(2, 0.001, n=120, truth=truth)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("n_params", "tokens", "loss")}
    return Runs.of(**columns, arch=["transformer"] * 120 + ["hybrid"] * 120), truth


@pytest.mark.parametrize(("kind", "alpha"), [("offset", 0.34), ("slope", 0.5)])
def test_an_offset_is_told_from_a_slope(kind, alpha):
    """Two architectures: the second has less loss by a factor, or falls faster with size."""
    runs, _ = two_architectures(alpha, 300.0 if kind == "offset" else 400.0 * 1e9 ** (alpha - 0.34))
    found = fit("parametric", runs, Settings(bootstrap=128, holdout=0, options={"architectures": "offset"}))
    difference = found.sensitivity["architectures"]["exponent_differences"]["hybrid"]
    assert difference["kind"] == kind
    assert any(kind in sentence for sentence in found.verdict)


def test_each_architecture_has_its_own_curve_colour_and_prediction():
    runs, _ = two_architectures()
    points = [{"N": 1e9, "D": 2e10}, {"C": 1e21}]
    found = fit("parametric", runs, bootstrap=100, holdout=0, predict=points, architectures="offset")
    drawn = [(one.label, one.kind) for one in found.curves if one.panel == "loss against compute"]
    assert drawn == [(arch, kind) for arch in ("transformer", "hybrid") for kind in ("points", "line")]
    assert all(one.low is not None for one in found.curves if one.kind == "line" and one.label != "equal")
    assert [entry["arch"] for entry in found.predictions] == ["transformer", "hybrid"] * 2
    for transformer, hybrid in (found.predictions[:2], found.predictions[2:]):
        assert transformer["loss_interval"][0] > hybrid["loss_interval"][1]
    assert {"E[hybrid]", "E[transformer]", "alpha"} < set(found.intervals)


def test_the_gain_of_an_architecture_is_given_in_nats_and_in_compute():
    runs, truth = two_architectures()
    found = fit("parametric", runs, bootstrap=200, holdout=0, architectures="offset")
    gain = found.sensitivity["architectures"]["exponent_differences"]["hybrid"]
    flops, theirs = gain["flops"], compute_optimal(planted.PARAMETRIC, gain["flops"])[2]
    assert flops == min((6 * part["n_params"] * part["tokens"]).max() for part in runs.split("arch").values())
    share = brentq(lambda share: compute_optimal(truth, share * flops)[2] - theirs, 0.01, 1)
    for name, expected in (("gain", theirs - compute_optimal(truth, flops)[2]), ("compute_share", share)):
        assert gain[name] == pytest.approx(expected, rel=0.05)
        low, high = gain[f"{name}_interval"]
        assert low < expected < high
    assert f"loss of hybrid is {gain['gain']:.4g} nats per token lower (95 % interval" in found.verdict[-1]
    assert f"the same loss takes {gain['compute_share']:.4g} of the compute (95 % interval" in found.verdict[-1]


def test_architectures_that_do_not_differ_are_not_called_different():
    runs, _ = two_architectures(A=planted.PARAMETRIC["A"])
    found = fit("parametric", runs, bootstrap=100, holdout=0, architectures="offset")
    assert found.verdict[-1].endswith("These data do not show a difference.")


def test_an_architecture_is_not_held_out_as_a_whole():
    """The largest runs, which the extrapolation check holds out, are all of one architecture."""
    runs = planted.parametric_runs(1, 0.003, n=60)
    last = np.argsort(np.argsort(runs["n_params"] * runs["tokens"])) >= 55
    split = runs.with_column("arch", np.where(last, "large", "small"))
    assert fit("parametric", split, bootstrap=0, architectures="offset").extrapolation is None
    assert fit("parametric", runs, bootstrap=0).extrapolation is not None


def test_slopes_of_many_architectures_are_corrected_by_holm():
    """The least p counts as often as there are comparisons, the next once less."""
    p = {"b": (0.02, 0.5), "c": (0.6, 0.011), "d": (None, None)}
    table = {name: {"alpha": {"p": alpha}, "beta": {"p": beta}} for name, (alpha, beta) in p.items()}
    decide(table)
    assert table["c"]["beta"]["p_holm"] == pytest.approx(4 * 0.011)
    assert table["b"]["alpha"]["p_holm"] == pytest.approx(3 * 0.02)
    assert [table[name]["kind"] for name in p] == ["offset", "slope", "undecided"]
