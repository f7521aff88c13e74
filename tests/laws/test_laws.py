"""What every law returns, and the questions that some laws answer besides."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import rankdata

from hybridtron.errors import UserError
from hybridtron.laws import LAWS, Settings, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss.parametric import compute_optimal, decide
from hybridtron.laws.families.scores.correlation import permutation_p, rank_p
from tests.laws import planted

EXAMPLES = {
    "parametric": planted.parametric_runs(1, 0.003),
    "isoflop": planted.isoflop_runs(1, 0.003),
    "overtraining": planted.overtraining_runs(1, 0.003),
    "state-optimal": planted.state_runs(1, 0.003),
    "downstream": planted.downstream_runs(1, 0.003),
    "proxy": planted.proxy_runs(1, -0.8, 20),
    "learning-rate": planted.learning_rate_runs(1, 0.003),
}
KEYS = (
    "law parameters objective n_points n_groups intervals settings sensitivity predictions warnings version search "
    "extrapolation verdict cross_checks"
)


@pytest.mark.parametrize("law", EXAMPLES)
def test_a_fit_is_plain_json_with_the_documented_keys(law):
    found = fit(law, EXAMPLES[law], Settings(bootstrap=64))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(content) == set(KEYS.split())
    assert set(content["parameters"]) == set(LAWS[law].parameters)
    assert 0 < content["n_points"] <= len(EXAMPLES[law])
    assert content["verdict"]
    assert "summed" in content["settings"]["objective"]
    for series in found.curves:
        assert len(series.x) == len(series.y)


@pytest.mark.parametrize("law", ["parametric", "isoflop", "state-optimal"])
def test_the_same_seed_gives_the_same_intervals_for_any_number_of_jobs(law):
    one, again, other = (
        fit(law, EXAMPLES[law], Settings(bootstrap=200, holdout=0, seed=seed, jobs=jobs)).intervals
        for seed, jobs in ((1, 1), (1, 3), (2, 1))
    )
    assert one == again
    assert one != other


def test_compute_optimal_is_the_least_loss_of_its_budget():
    truth, flops = planted.PARAMETRIC, 1e21
    n, d, loss = compute_optimal(truth, flops)
    assert 6 * n * d == pytest.approx(flops)
    sizes = n * np.geomspace(0.5, 2, 101)
    assert loss <= planted.parametric_loss(sizes, flops / (6 * sizes), **truth).min() * (1 + 1e-12)


def test_isoflop_fits_tokens_on_their_own():
    """With 2 N D FLOPs instead of 6 N D budgets, and a cost that grows with the budget, b is not 1 - a."""
    runs = planted.isoflop_runs(1, 0.0)
    padded = runs.with_column("tokens", runs["tokens"] * (runs["flops"] / 1e18) ** -0.05)
    found = fit("isoflop", padded, Settings(bootstrap=0)).parameters
    assert found["a"] + found["b"] == pytest.approx(0.95, abs=0.005)


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


def test_overtraining_reports_the_excess_of_each_architecture():
    runs = EXAMPLES["overtraining"]
    two = runs.with_column("arch", ["a" if i % 2 else "b" for i in range(len(runs))])
    found = fit("overtraining", two, Settings(bootstrap=64, predict=[{"N": 1e9, "M": 640}]))
    assert set(found.sensitivity["architectures"]) == {"a", "b"}
    assert found.predictions[0]["excess_over_compute_optimal"] > 0
    panels = {series.panel for series in found.curves if "excess" in series.panel}
    assert len(panels) == 1


def test_a_chain_with_an_unsure_loss_gives_no_interval_of_the_error():
    """Ten runs are enough for the three parameters of the error and too few for the five of the loss."""
    runs = planted.parametric_runs(3, 0.002, n=10)
    truth, noise = planted.DOWNSTREAM, 1e-4 * np.random.default_rng(1).standard_normal(10)
    error = truth["epsilon"] - truth["k"] * np.exp(-truth["gamma"] * runs["loss"]) + noise
    settings = Settings(bootstrap=100, holdout=0, predict=[{"N": 3e9, "D": 6e10}, {"L": 2.5}])
    found = fit("downstream", runs.with_column("error", error), settings)
    chained, direct = (point["error_interval"] for point in found.predictions)
    assert chained is None
    assert direct is not None
    assert any(warning.startswith("loss law: few points") for warning in found.warnings)


@pytest.mark.parametrize("loss_law", ["parametric", "overtraining"])
def test_downstream_is_chained_after_a_loss_law(loss_law):
    runs = planted.parametric_runs(3, 0.002)
    truth = planted.DOWNSTREAM
    error = truth["epsilon"] - truth["k"] * np.exp(-truth["gamma"] * runs["loss"])
    settings = Settings(bootstrap=64, predict=[{"N": 3e9, "D": 6e10}], options={"loss_law": loss_law})
    found = fit("downstream", runs.with_column("error", error), settings).predictions[0]
    loss = planted.parametric_loss(3e9, 6e10, **planted.PARAMETRIC)
    expected = truth["epsilon"] - truth["k"] * math.exp(-truth["gamma"] * loss)
    assert found["error"] == pytest.approx(expected, rel=0.01)
    low, high = found["error_interval"]
    assert low < found["error"] < high


def test_held_out_runs_are_the_largest_and_their_error_is_reported():
    held = fit("parametric", EXAMPLES["parametric"], Settings(bootstrap=0, holdout=5)).extrapolation
    assert held["held_out"] == 5
    assert held["largest_held_out"] > held["largest_fitted"]
    assert held["mean_absolute_relative_error"] < 0.02


def test_held_out_budgets_of_a_learning_rate_sweep():
    held = fit("learning-rate", EXAMPLES["learning-rate"], Settings(bootstrap=0, holdout=2)).extrapolation
    assert (held["held_out"], held["largest_fitted"], held["largest_held_out"]) == (2, 1e18, 1e20)
    assert held["mean_absolute_relative_error"] < 0.1
    assert set(held["parameters_without"]) == {"s", "k"}


@pytest.mark.parametrize("other", [None, 1e19])
def test_a_sweep_of_one_budget_gives_its_best_rate_and_plot(other):
    """Where the other budget has its lowest loss at an edge it does not count."""
    runs = planted.one_sweep(1, 0.002)
    if other:
        edge = {"learning_rate": runs["learning_rate"], "flops": np.full(9, other), "loss": np.linspace(3, 2.5, 9)}
        runs = Runs.of(**{name: np.concatenate([runs[name], values]) for name, values in edge.items()})
    found = fit("learning-rate", runs)
    low, high = found.intervals["learning_rate"]
    assert low < 0.003 < high < 1.1 * low
    assert found.parameters == {"learning_rate": pytest.approx(0.003, rel=0.02)}
    assert found.verdict[0].startswith("The best learning rate at 1e+18 FLOPs = 0.003")
    (point,) = (series for series in found.curves if series.label == "least loss")
    assert (point.panel, list(point.x)) == ("sweeps", [found.parameters["learning_rate"]])
    assert {"points", "line"} <= {series.kind for series in found.curves}
    assert any("edge minimum" in warning for warning in found.warnings) == bool(other)
    with pytest.raises(UserError, match="predicts no other"):
        fit("learning-rate", runs, predict={"C": 1e18})


def test_rows_of_one_run_give_a_sweep_no_interval():
    runs = planted.one_sweep(1, 0.002).with_column("run", [0, 0, 1, 2, 3, 4, 5, 6, 7])
    found = fit("learning-rate", runs, group="run")
    assert found.intervals is None
    assert any(warning.startswith("few points: no interval, 9 rows of 8 runs") for warning in found.warnings)


def test_every_run_is_in_the_plot_however_many_ratios_there_are():
    runs = planted.overtraining_runs(2, 0.003, n=60)
    spread = runs.with_column("tokens", runs["n_params"] * np.geomspace(0.5, 4000, 60))
    panel = [s for s in fit("overtraining", spread, Settings(bootstrap=0)).curves if s.panel == "loss against compute"]
    assert sum(len(series.x) for series in panel if series.kind == "points") == 60
    assert len({series.label for series in panel}) <= 8


def test_points_found_from_the_same_runs_are_resampled_together():
    """Five budgets of each architecture; where each run gives a point to two budgets, fewer points are independent."""
    runs = planted.state_runs(1, 0.003)
    pairs = [f"{arch} {i % 5 // 2}" for i, arch in enumerate(runs["arch"])]
    settings = Settings(bootstrap=64, group="run")
    found = fit("state-optimal", runs.with_column("run", pairs), settings)
    assert (found.n_points, found.n_groups) == (15, 9)
    assert fit("state-optimal", runs, Settings(bootstrap=64)).n_groups == 15


@pytest.mark.parametrize("n", [5, 8])
def test_counting_orders_of_ranks_is_trying_them_all(n):
    rng = np.random.default_rng(n)
    x, y = rankdata(rng.standard_normal(n)), rankdata(rng.integers(0, 4, n).astype(float))
    assert rank_p(x, y, 0)[0] == pytest.approx(permutation_p(x, y, 0)[0])


def test_more_orders_than_can_be_counted_are_not_called_exact():
    twelve, thirteen = (fit("proxy", planted.proxy_runs(1, -0.8, n)) for n in (12, 13))
    assert twelve.search["p_counted_over"] == "all 479001600 orders"
    assert "exact permutation p" in twelve.verdict[0]
    assert "permutation p (100000 random orders)" in thirteen.verdict[0]
    assert "exact" not in thirteen.verdict[0]


def test_points_of_a_correlation_are_named_after_their_architectures_or_their_groups():
    runs = Runs.of(score=[1, 2, 3], loss=[3, 2, 1], arch=["a", "b", "c"], seeds=["x", "x", "y"])
    assert fit("proxy", runs).curves[0].names == ("a", "b", "c")
    grouped = fit("proxy", runs, Settings(group="seeds")).curves[0]
    assert grouped.names == ("x", "y")
    assert list(grouped.x) == [1.5, 3]


def test_the_permutation_p_is_exact():
    """Perfect order of five points: 2 of 120 orders are as extreme."""
    p, smallest, counted = rank_p(rankdata(np.arange(5.0)), rankdata(np.arange(5.0)), 0)
    assert p == smallest == pytest.approx(2 / 120)
    assert "120" in counted
    assert fit("proxy", Runs.of(score=[3.0, 1.0, 3.0], loss=[2.5, 1.0, 2.5])).parameters["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("rows", [1, 5])
def test_no_more_rows_than_parameters_are_refused(rows):
    with pytest.raises(UserError, match=rf"{rows} rows?; expected more than the 5 parameters of parametric"):
        fit("parametric", planted.parametric_runs(1, 0.003, n=rows))
    assert fit("parametric", planted.parametric_runs(1, 0.003, n=6)).parameters


def test_the_extrapolation_check_gives_factors_and_the_error_at_the_largest():
    runs = EXAMPLES["parametric"]
    found = fit("parametric", runs, Settings(bootstrap=0, holdout=5))
    held = found.extrapolation
    factor = np.exp(np.abs(np.log(np.array(held["predicted"]) / np.array(held["observed"]))))
    assert held["median_factor"] == pytest.approx(np.median(factor))
    assert held["largest_factor"] == pytest.approx(factor.max())
    largest = runs["loss"][np.argmax(runs["n_params"] * runs["tokens"])]
    at = list(held["observed"]).index(largest)
    assert held["relative_error_at_largest"] == pytest.approx(held["predicted"][at] / largest - 1)
    median, most = (f"{100 * (held[name] - 1):.2g} %" for name in ("median_factor", "largest_factor"))
    words = f"misses their loss by {median} at the median and {most} at most;"
    assert any(words in sentence for sentence in found.verdict)


def test_slopes_of_many_architectures_are_corrected_by_holm():
    """The least p counts as often as there are comparisons, the next once less."""
    p = {"b": (0.02, 0.5), "c": (0.6, 0.011), "d": (None, None)}
    table = {name: {"alpha": {"p": alpha}, "beta": {"p": beta}} for name, (alpha, beta) in p.items()}
    decide(table)
    assert table["c"]["beta"]["p_holm"] == pytest.approx(4 * 0.011)
    assert table["b"]["alpha"]["p_holm"] == pytest.approx(3 * 0.02)
    assert [table[name]["kind"] for name in p] == ["offset", "slope", "undecided"]
