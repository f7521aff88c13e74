"""What every law returns: documented keys, intervals by seed, held-out runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import LAWS, Settings, fit
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


def test_held_out_runs_are_the_largest_and_their_error_is_reported():
    held = fit("parametric", EXAMPLES["parametric"], Settings(bootstrap=0, holdout=5)).extrapolation
    assert held["held_out"] == 5
    assert held["largest_held_out"] > held["largest_fitted"]
    assert held["mean_absolute_relative_error"] < 0.02


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
