"""Each law finds the truth that was planted in 200 synthetic data sets, and its 95 % intervals cover it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import depth_width, overtraining, parametric
from hybridtron.laws.families.scores import downstream
from hybridtron.laws.families.scores.correlation import spearman_interval
from hybridtron.laws.fitting.curves.curve import fit_curve
from tests.laws import planted

SETS = 200


def check(truth, parameters, intervals) -> None:
    """Coverage of 92-98 % for each parameter, and as many estimates above the truth as below (within 3 errors)."""
    for name, value in truth.items():
        estimates = np.array([one[name] for one in parameters])
        spans = np.array([one[name] for one in intervals])
        coverage = ((spans[:, 0] <= value) & (value <= spans[:, 1])).mean()
        assert 0.92 <= coverage <= 0.98, f"{name}: covered {coverage:.3f}"
        above = (estimates > value).mean()
        assert abs(above - 0.5) <= 3 * 0.5 / math.sqrt(len(estimates)), (
            f"{name}: {above:.2f} of the estimates are above"
        )


@pytest.mark.timeout(1800)  # minutes of one core on a busy machine
@pytest.mark.parametrize(
    ("build", "delta", "make", "truth", "seed"),
    [
        (parametric.build, parametric.DELTA, planted.parametric_runs, planted.PARAMETRIC, 11),
        (overtraining.build, math.inf, planted.overtraining_runs, planted.OVERTRAINING, 11),
        (downstream.build, math.inf, planted.downstream_runs, planted.DOWNSTREAM, 11),
        (depth_width.LAW.build, 1e-3, planted.depth_width_runs, planted.DEPTH_WIDTH, 13),
    ],
    ids=["parametric", "overtraining", "downstream", "depth-width, from its formula alone"],
)
def test_curve_laws_recover_the_truth(build, delta, make, truth, seed):
    fits = [
        fit_curve(build, make([seed, i], planted.NOISES[i % 4]), Settings(bootstrap=200, seed=i), delta)
        for i in range(SETS)
    ]
    check(truth, [f.parameters for f in fits], [f.intervals for f in fits])


@pytest.mark.parametrize(
    ("law", "make", "truth"),
    [
        ("isoflop", planted.isoflop_runs, planted.isoflop_truth()),
        ("state-optimal", planted.state_runs, {"c": -0.28, "G": 900.0}),
        ("learning-rate", planted.learning_rate_runs, {"s": -0.12, "k": 0.3}),
    ],
)
def test_laws_through_minima_recover_the_truth(law, make, truth):
    fits = [fit(law, make([14, i], planted.NOISES[i % 4]), Settings(bootstrap=500, seed=i)) for i in range(SETS)]
    check(truth, [f.parameters for f in fits], [f.intervals for f in fits])


@pytest.mark.parametrize("rates", [6, 9])
def test_the_best_rate_of_one_sweep_is_covered(rates):
    fits = [fit("learning-rate", planted.one_sweep([17, i], 0.002, rates)) for i in range(SETS)]
    check({"learning_rate": 0.003}, [f.parameters for f in fits], [f.intervals for f in fits])


@pytest.mark.parametrize("n", [8, 12, 40])
def test_correlations_cover_the_population(n):
    correlation = -0.7
    of_ranks = 6 / math.pi * math.asin(correlation / 2)
    covered = []
    for i in range(5 * SETS):
        runs = planted.proxy_runs([15, i], correlation, n)
        low, high = spearman_interval(spearmanr(runs["score"], runs["loss"]).statistic, n)
        left, right = pearsonr(runs["score"], runs["loss"]).confidence_interval()
        covered.append([low <= of_ranks <= high, left <= correlation <= right])
    for share in np.mean(covered, axis=0):
        assert 0.92 <= share <= 0.98


def test_rows_of_one_run_are_resampled_together():
    """40 runs of 6 rows that share their noise: rows alone promise far too much, groups do not."""

    def width(group):
        rng = np.random.default_rng(16)
        sizes, tokens = planted.scattered_sizes(rng, 40)
        n, d = np.repeat(sizes, 6), (tokens[:, None] * np.geomspace(0.2, 1, 6)).ravel()
        noise = np.repeat(0.005 * rng.standard_normal(40), 6)
        loss = planted.parametric_loss(n, d, **planted.PARAMETRIC) * np.exp(noise)
        runs = Runs.of(n_params=n, tokens=d, loss=loss, run=np.repeat(np.arange(40), 6))
        low, high = fit_curve(parametric.build, runs, Settings(bootstrap=256, group=group), 1e-3).intervals["alpha"]
        return high - low

    assert width("run") > 1.5 * width(None)
