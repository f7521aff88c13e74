"""Every warning: data that bring it about and data that do not."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from tests.laws import planted

QUICK = Settings(bootstrap=64, holdout=0)


SHAPES = planted.depth_width_runs(5, 0.002)


def kinds(found) -> list[str]:
    return [warning.split(":")[0] for warning in found.warnings]


@pytest.mark.parametrize(
    ("law", "few", "enough"),
    [
        ("parametric", planted.parametric_runs(1, 0.003, n=10), planted.parametric_runs(1, 0.003, n=30)),
        ("overtraining", planted.overtraining_runs(1, 0.003, n=9), planted.overtraining_runs(1, 0.003, n=30)),
        ("downstream", planted.downstream_runs(1, 0.003, n=6), planted.downstream_runs(1, 0.003, n=30)),
        (
            "isoflop",
            planted.isoflop_runs(1, 0.003, budgets=(1e19, 1e20)),
            planted.isoflop_runs(1, 0.003, budgets=(1e18, 1e19, 1e20)),
        ),
        (
            "isoflop",
            planted.isoflop_runs(1, 0.001, budgets=(1e18, 1e19, 1e20), sizes=4),
            planted.isoflop_runs(1, 0.001),
        ),
        ("state-optimal", planted.state_runs(1, 0.003, budgets=(4e18,)), planted.state_runs(1, 0.003)),
    ],
)
def test_too_few_points_refuse_intervals(law, few, enough):
    refused, given = fit(law, few, QUICK), fit(law, enough, QUICK)
    assert refused.intervals is None
    assert "few points" in kinds(refused)
    assert any("degrees of freedom" in w or "exactly" in w for w in refused.warnings)
    assert set(given.intervals) == set(given.parameters)
    assert "few points" not in kinds(given)


def test_few_runs_of_many_checkpoints_refuse_intervals():
    runs = planted.parametric_runs(1, 0.003, n=60)
    few, many = (runs.with_column("run", np.arange(60) % count) for count in (6, 30))
    settings = Settings(bootstrap=64, holdout=0, group="run")
    assert fit("parametric", few, settings).intervals is None
    assert fit("parametric", many, settings).intervals is not None


def test_edge_minimum_is_dropped_and_named():
    good = fit("isoflop", planted.isoflop_runs(2, 0.001), QUICK)
    moved = fit("isoflop", planted.isoflop_runs(2, 0.001, shift=(0, 0, 0, 0, 0, 2.5)), QUICK)
    assert "edge minimum" not in kinds(good)
    assert any(w.startswith("edge minimum") and "3e+20" in w and "smallest" in w for w in moved.warnings)
    dropped = [budget["flops"] for budget in moved.search["budgets"] if not budget["kept_N"]]
    assert dropped == [3e20]
    assert moved.parameters["a"] == pytest.approx(planted.isoflop_truth()["a"], abs=0.03)


def test_filter_sensitivity_of_flagged_and_of_far_rows():
    clean = planted.isoflop_runs(3, 0.0005)
    flags = np.zeros(len(clean))
    flags[[6, 7]] = 1
    spoiled_loss = clean["loss"].copy()
    spoiled_loss[[6, 7]] -= 0.03
    harmless = fit("isoflop", clean.with_column("outlier", flags), QUICK)
    harmful = fit("isoflop", clean.with_column("outlier", flags).with_column("loss", spoiled_loss), QUICK)
    assert "filter sensitivity" not in kinds(harmless)
    assert any(w.startswith("filter sensitivity") and "outlier" in w for w in harmful.warnings)
    assert harmless.sensitivity["without_flagged"]["rows"] == 2


def test_filter_sensitivity_of_a_curve():
    runs = planted.parametric_runs(4, 0.001, n=40)
    flags = np.isin(np.arange(40), [3, 7])
    spoiled = runs.with_column("loss", runs["loss"] * np.where(flags, 1.05, 1.0))
    settings = Settings(delta=np.inf, bootstrap=0, holdout=0)
    assert "filter sensitivity" not in kinds(fit("parametric", runs.with_column("outlier", flags), settings))
    assert "filter sensitivity" in kinds(fit("parametric", spoiled.with_column("outlier", flags), settings))


@pytest.mark.parametrize(
    ("law", "runs", "near", "far"),
    [
        ("parametric", planted.parametric_runs(5, 0.003), {"N": 5e9, "D": 1e11}, {"N": 5e11, "D": 1e11}),
        ("parametric", planted.parametric_runs(5, 0.003), {"C": 1e21}, {"C": 1e26}),
        ("overtraining", planted.overtraining_runs(5, 0.003), {"N": 1e9, "M": 50}, {"N": 1e9, "M": 50_000}),
        ("isoflop", planted.isoflop_runs(5, 0.003), {"C": 1e21}, {"C": 1e22}),
        ("state-optimal", planted.state_runs(5, 0.003), {"M": 1e7}, {"M": 1e10}),
        ("learning-rate", planted.learning_rate_runs(5, 0.003), {"C": 5e20}, {"C": 5e21}),
        (
            "depth-width",
            SHAPES,
            {"width": 2048, "depth": 24, "tokens": 1e11},
            {"width": 2048, "depth": 24, "tokens": 1e14},
        ),
    ],
)
def test_extrapolation_beyond_ten_times(law, runs, near, far):
    inside = fit(law, runs, Settings(bootstrap=64, holdout=0, predict=[near]))
    beyond = fit(law, runs, Settings(bootstrap=64, holdout=0, predict=[far]))
    assert "extrapolation" not in kinds(inside)
    assert "extrapolation" in kinds(beyond)
    simulated = law in ("parametric", "isoflop")
    told = [warning for warning in beyond.warnings if warning.startswith("extrapolation")]
    assert all(("covered it in 9" in warning) == simulated for warning in told)
    assert all(("of " + law in warning) != simulated for warning in told)


def test_few_points_for_a_correlation_are_not_evidence():
    four = fit("proxy", planted.proxy_runs(1, -0.99, 4))
    twenty = fit("proxy", planted.proxy_runs(1, -0.99, 20))
    assert any("not evidence" in w for w in four.warnings)
    assert four.intervals is None
    assert any(sentence.startswith("Not evidence") for sentence in four.verdict)
    assert twenty.warnings == []
    assert twenty.search["status"] == "validated"
    assert [series.kind for series in four.curves] == ["points"]
    assert four.curves[0].note.startswith("not evidence: 4 points")
    assert [series.kind for series in twenty.curves] == ["points", "line"]
    assert twenty.curves[0].note == ""


@pytest.mark.parametrize(
    ("scores", "losses", "words"),
    [
        ([0.3, 0.4], [2.0, 2.1], "The higher score has the higher loss: the wrong way."),
        ([0.3, 0.4], [2.1, 2.0], "The higher score has the lower loss: the way that a proxy should."),
        ([0.3, 0.4, 0.5], [2.0, 2.2, 2.1], "By rank, higher scores go with higher losses: the wrong way."),
        ([1, 2, 3, 4, 5], [2.2, 2.0, 2.3, 1.9, 2.1], "By rank, higher scores go with lower losses: the way that"),
        ([1, 2, 3, 4], [2.0, 3.0, 3.0, 2.0], "The order of the scores has nothing of the order of the losses."),
    ],
)
def test_the_direction_is_said_whatever_it_is_worth(scores, losses, words):
    found = fit("proxy", Runs.of(score=scores, loss=losses))
    assert found.search["status"] in ("not evidence", "not shown")
    assert words in found.verdict[0]


@pytest.mark.parametrize("correlation", [0.9, 0.99])
def test_a_score_that_rises_with_the_loss_orders_the_wrong_way(correlation):
    found = fit("proxy", planted.proxy_runs(1, correlation, 20))
    assert found.search["status"] == "wrong way"
    assert "the score orders them the wrong way" in found.verdict[-1]
    assert not any("validated" in sentence or "to rank" in sentence for sentence in found.verdict)


@pytest.mark.parametrize("seed", range(20))
def test_a_correlation_whose_interval_includes_zero_is_never_called_validated(seed):
    found = fit("proxy", planted.proxy_runs(seed, -0.3, 8))
    crosses = any(low <= 0 <= high for low, high in found.intervals.values())
    assert (found.search["status"] == "not shown") == (crosses or found.parameters["p"] > 0.05)
    assert crosses is False or not any("validated" in sentence for sentence in found.verdict)


def test_units_ask():
    runs = planted.parametric_runs(6, 0.003)
    assert "units" not in kinds(fit("parametric", runs, QUICK))
    perplexities = runs.with_column("loss", np.exp(runs["loss"] + 1))
    billions = runs.with_column("tokens", runs["tokens"] / 1e9)
    assert any("perplexity" in w and "?" in w for w in fit("parametric", perplexities, QUICK).warnings)
    assert any("tokens counted in" in w and "?" in w for w in fit("parametric", billions, QUICK).warnings)


def test_a_parameter_that_the_data_cannot_measure_is_named():
    runs = planted.parametric_runs(7, 0.0005)
    flat = planted.parametric_runs(7, 0.0005, truth={**planted.PARAMETRIC, "A": 1e-9})
    assert "not identified" not in kinds(fit("parametric", runs, QUICK))
    assert "not identified" in kinds(fit("parametric", flat, QUICK))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_params": np.full(40, 1e8)}, "same n_params"),
        ({"tokens": np.full(40, 1e10)}, "same tokens"),
        ({"tokens": 20 * planted.parametric_runs(7, 0.001, n=40)["n_params"]}, "rise together"),
        ({name: np.full(40, value) for name, value in {"n_params": 1e8, "tokens": 1e9, "loss": 3.0}.items()}, "same"),
    ],
)
def test_rows_that_cannot_tell_the_parameters_apart_refuse_intervals(change, words):
    runs = planted.parametric_runs(7, 0.001, n=40)
    for name, values in change.items():
        runs = runs.with_column(name, values)
    found = fit("parametric", runs, QUICK)
    assert found.intervals is None
    assert any(w.startswith("not identified: no intervals") and words in w for w in found.warnings)


def test_parameters_of_a_term_that_vanishes_are_free():
    runs = planted.parametric_runs(7, 0.001, n=40)
    found = fit("parametric", runs.with_column("loss", np.full(40, 3.0)), QUICK)
    assert found.intervals is None
    assert any("A, B, alpha, beta free" in w for w in found.warnings)


def test_errors_that_do_not_bend_leave_the_far_end_open():
    bent = planted.downstream_runs(1, 0.002)
    noise = 0.002 * np.random.default_rng(1).standard_normal(len(bent))
    straight = bent.with_column("error", 0.3 + 0.1 * bent["loss"] + noise)
    clear, open_ended = fit("downstream", bent, QUICK), fit("downstream", straight, QUICK)
    assert "not identified" not in kinds(clear)
    assert np.ptp(clear.intervals["epsilon"]) < 0.1
    assert "not identified" in kinds(open_ended)
    assert open_ended.intervals["epsilon"][1] > 10


def scattered(runs: Runs, width: float) -> Runs:
    """FLOPs as counted: about their nominal budgets by up to this factor."""
    rng = np.random.default_rng(1)
    return runs.with_column("flops", runs["flops"] * np.exp(rng.uniform(-width, width, len(runs))))


def test_counted_flops_are_gathered_into_their_budgets():
    runs = planted.isoflop_runs(2, 0.001)
    exact, near = fit("isoflop", runs, QUICK), fit("isoflop", scattered(runs, 0.1), QUICK)
    assert "budgets" not in kinds(exact)
    assert len(near.search["budgets"]) == 6
    assert near.parameters["a"] == pytest.approx(exact.parameters["a"], abs=0.03)
    assert any(w.startswith("budgets: FLOPs that differ by up to") for w in near.warnings)


def test_flops_that_form_no_budgets_are_asked_about_in_few_words():
    runs = planted.isoflop_runs(2, 0.001)
    rng = np.random.default_rng(3)
    loose = Runs.of(
        n_params=np.exp(rng.uniform(18, 22, 120)), tokens=np.exp(rng.uniform(21, 25, 120)), loss=np.ones(120)
    )
    loose = loose.with_column("loss", planted.parametric_loss(loose["n_params"], loose["tokens"], **planted.PARAMETRIC))
    loose = loose.with_column("flops", 6 * loose["n_params"] * loose["tokens"])
    together = Runs.of(**{n: np.concatenate([runs[n], loose[n]]) for n in ("n_params", "tokens", "flops", "loss")})
    found = fit("isoflop", together, QUICK)
    assert any(w.startswith("budgets:") and w.endswith("of each run?") for w in found.warnings)
    assert sum(w.startswith("few points") for w in found.warnings) <= 2


def test_a_holdout_that_leaves_too_little_is_said():
    runs = planted.parametric_runs(4, 0.003, n=30)
    for law, table, count in (
        ("parametric", runs, 25),
        ("isoflop", planted.isoflop_runs(1, 0.001), 5),
        ("state-optimal", planted.state_runs(1, 0.003), 13),
        ("learning-rate", planted.learning_rate_runs(1, 0.003), 3),
    ):
        asked = fit(law, table, Settings(bootstrap=0, holdout=count))
        assert asked.extrapolation is None
        assert "holdout" in kinds(asked)
        assert "holdout" not in kinds(fit(law, table, Settings(bootstrap=0, holdout=1)))


def test_a_setting_without_meaning_is_said():
    runs = planted.isoflop_runs(1, 0.001)
    assert "ignored" not in kinds(fit("isoflop", runs, QUICK))
    assert (
        "ignored: delta 0.1 means nothing to isoflop" in fit("isoflop", runs, Settings(bootstrap=0, delta=0.1)).warnings
    )
    assert "ignored" in kinds(fit("proxy", planted.proxy_runs(1, -0.8, 20), Settings(holdout=2)))


def test_few_replicates_are_said():
    runs = planted.parametric_runs(1, 0.003, n=30)
    assert "replicates" in kinds(fit("parametric", runs, Settings(bootstrap=20, holdout=0)))
    assert "replicates" not in kinds(fit("parametric", runs, Settings(bootstrap=100, holdout=0)))


def test_single_runs_among_minima_are_asked_about():
    runs = planted.state_runs(1, 0.003)
    parabolas = planted.isoflop_runs(1, 0.001, budgets=(1e19, 1e20)).with_column("arch", ["transformer"] * 16)
    parabolas = parabolas.with_column("total_state", 100 * parabolas["n_params"] ** 0.6)
    names = ("flops", "total_state", "loss", "arch", "n_params")
    single = runs.with_column("n_params", np.full(len(runs), 1e8))
    mixed = Runs.of(**{name: np.concatenate([single[name], parabolas[name]]) for name in names})
    assert "single runs" not in kinds(fit("state-optimal", runs, QUICK))
    assert "single runs" in kinds(fit("state-optimal", mixed, QUICK))


def test_minima_that_scatter_more_than_their_noise_widen_the_interval():
    runs = planted.isoflop_runs(8, 0.0005)
    moved = np.repeat(0.3 * np.random.default_rng(8).standard_normal(6), 8)
    settings = Settings(bootstrap=400)
    calm = fit("isoflop", runs, settings)
    wild = fit("isoflop", runs.with_column("n_params", runs["n_params"] * np.exp(moved)), settings)
    assert "scatter" not in kinds(calm)
    assert "scatter" in kinds(wild)
    assert np.ptp(wild.intervals["a"]) > 2 * np.ptp(calm.intervals["a"])


def test_undeclared_context_of_the_state():
    runs = planted.state_runs(9, 0.003)
    assert "context" in kinds(fit("state-optimal", runs, QUICK))
    declared = fit("state-optimal", runs, Settings(bootstrap=64, options={"context": 4096}))
    assert "context" not in kinds(declared)
    assert any("4096" in sentence for sentence in declared.verdict)
    from_column = fit("state-optimal", runs.with_column("state_context", np.full(len(runs), 2048.0)), QUICK)
    assert any("2048" in sentence for sentence in from_column.verdict)


@pytest.mark.parametrize(
    ("law", "runs", "message"),
    [
        ("isoflop", planted.isoflop_runs(1, 0.001, budgets=(1e19,)), "one budget only"),
        ("parametric", planted.parametric_runs(1, 0.001).take(np.zeros(100, bool)), "no rows"),
        ("parametric", Runs.of(n_params=[1e8, 2e8], tokens=[1e9, np.nan], loss=[3.0, 2.9]), "line 2: tokens is nan"),
        ("parametric", Runs.of(n_params=[1e8, 2e8], tokens=[1e9, 1e9], loss=[3.0, -2.9]), "line 2: loss is -2.9"),
        ("parametric", Runs.of(n_params=[0.0, 2e8], tokens=[1e9, 1e9], loss=[3.0, 2.9]), "line 1: n_params is 0"),
        ("parametric", Runs.of(n_param=[1e8], tokens=[1e9], loss=[3.0]), "nearest: n_param"),
        ("proxy", Runs.of(score=[1.0, 1.0], loss=[3.0, 2.0]), "all 2 points have the score 1; .* at least two scores"),
        ("proxy", Runs.of(score=[1.0], loss=[3.0]), "1 point; a correlation needs at least two"),
        ("parametrc", planted.parametric_runs(1, 0.001), "nearest: parametric"),
    ],
)
def test_bad_input_is_one_clear_line(law, runs, message):
    with pytest.raises(UserError, match=message) as raised:
        fit(law, runs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("point", "message"),
    [({"Q": 1.0}, "does not know 'Q'"), ({"N": -1.0, "D": 1e9}, "above zero"), ({"N": 1e9}, "two of")],
)
def test_bad_predictions_are_one_clear_line(point, message):
    with pytest.raises(UserError, match=message):
        fit("parametric", planted.parametric_runs(1, 0.001), Settings(bootstrap=0, holdout=0, predict=[point]))
