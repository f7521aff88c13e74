"""Fresh seeds for what a search has found, and what is said of patterns whose scores are noisy."""

from __future__ import annotations

import json
from contextlib import closing
from statistics import fmean

import numpy as np
import pytest
import torch
from scipy.stats import t

from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import prepare, work
from hybridtron.composer.report.outcome import read_outcome
from hybridtron.composer.report.summary import summary
from hybridtron.config.load import build
from hybridtron.errors import UserError

SEARCH = {
    "name": "small",
    "evaluations": 16,
    "space": {"blocks": ["attn", "mlp"], "layers": 4},
    "evaluator": {"type": "function", "instance": 2, "noise": 0.3},
    "engine": {"type": "random"},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def searched(folder, **changes):
    search = prepare(build({**SEARCH, "folder": str(folder), **changes}, SearchConfig))
    with closing(Store(folder, search.identity())) as store:
        return read_outcome(search, work(search, store, lambda progress: None))


def with_page(folder, **changes):
    outcome, page = run_search(build({**SEARCH, "folder": str(folder), **changes}, SearchConfig))
    return outcome, page.read_text()


def results(folder):
    rows = map(json.loads, (folder / "evaluations.jsonl").read_text().splitlines())
    return [(row["pattern"], row["seed"]) for row in rows if row["row"] == "result"]


def test_a_finished_search_is_confirmed_on_fresh_seeds_in_its_folder_and_leaders_get_more(tmp_path):
    """The search chooses nothing new: its own seed alone has chosen, and more fresh seeds add to those there."""
    before = searched(tmp_path)
    assert before.as_json()["confirmation"] is None
    confirm = {"top": 2, "seeds": 3, "baselines": ["MMMM"]}
    outcome, page = with_page(tmp_path, confirm=confirm)
    fresh = results(tmp_path)[16:]
    patterns = {pattern for pattern, _ in fresh}
    assert {seed for _, seed in fresh} == {1, 2, 3}
    assert len(fresh) == 3 * len(patterns) == len({*fresh})
    assert "mlp mlp mlp mlp" in patterns
    assert outcome.as_json()["pattern"] == before.as_json()["pattern"]
    assert [o.score for o in outcome.observations] == [o.score for o in before.observations]
    again = searched(tmp_path, confirm={**confirm, "seeds": 5})
    assert {pattern for pattern, _ in results(tmp_path)[16:]} == patterns
    assert {seed for _, seed in results(tmp_path)[16 + len(fresh) :]} == {4, 5}
    assert len(again.confirmed) == len(patterns)
    size = len(results(tmp_path))
    searched(tmp_path, confirm={**confirm, "seeds": 5})
    assert len(results(tmp_path)) == size
    for text in (page, summary(outcome)):
        assert "On 3 fresh seeds, in pairs" in text
        assert "baseline" in text


def test_differences_are_those_of_pairs_and_intervals_hold_together(tmp_path):
    outcome = searched(tmp_path, confirm={"top": 3, "seeds": 4})
    chain = Chain(4, 2, 2, noise=0.3)
    vote = outcome.confirmed[0].pattern
    assert vote == outcome.aggregate.pattern
    assert outcome.confirmed[0].difference is None
    others = outcome.confirmed[1:]
    assert len(others) >= 2
    for other in others:
        pairs = np.array([chain(other.pattern, seed) - chain(vote, seed) for seed in (1, 2, 3, 4)])
        assert other.score.mean == pytest.approx(fmean(chain(other.pattern, seed) for seed in (1, 2, 3, 4)))
        assert other.difference is not None
        assert other.difference.mean == pytest.approx(pairs.mean())
        half = t.ppf(1 - 0.025 / len(others), 3) * pairs.std(ddof=1) / 2
        assert other.difference.high == pytest.approx(pairs.mean() + half)
        expected = "better" if pairs.mean() > half else "worse" if pairs.mean() < -half else "not distinguishable"
        assert other.verdict == expected


def test_seeds_can_be_added_to_a_finished_search_but_not_exchanged(tmp_path):
    searched(tmp_path, evaluations=6)
    outcome = searched(tmp_path, evaluations=6, seeds=[0, 1, 2])
    assert len(results(tmp_path)) == 18
    assert outcome.step.noise is not None
    assert outcome.step.noise.freedom == 10
    with pytest.raises(UserError, match=r"seeds is \[0\] there, \[1, 2\] here"):
        searched(tmp_path, evaluations=6, seeds=[1, 2])


def test_a_pattern_is_called_better_only_where_noise_does_not_explain_it(tmp_path):
    """The same objective with little and with much noise, several seeds, and the noise given."""
    changes = {"aggregator": {"clusters": 1}, "evaluations": 14}
    sure = searched(tmp_path / "sure", **changes, seeds=[0, 1, 2], evaluator={**SEARCH["evaluator"], "noise": 0.001})
    assert sure.is_better
    assert "A pattern that was evaluated is better" in summary(sure)
    noisy = searched(tmp_path / "noisy", **changes, seeds=[0, 1, 2])
    assert noisy.is_better is False
    assert "the noise of the scores does not show" in summary(noisy)
    one = searched(tmp_path / "one", **changes)
    assert one.is_better is None
    given = searched(tmp_path / "one", **changes, engine={"type": "random", "noise": 0.3})
    assert given.is_better is False


def test_recommendations_have_posterior_means_and_intervals_that_hold_the_truth(tmp_path):
    """The highest score is above its own interval's mean, and the optimum of noisy scores is labelled as such."""
    engine = {"type": "random", "noise": 0.3}
    outcome, page = with_page(tmp_path, engine=engine)
    exact, found = Chain(4, 2, 2), outcome.as_json()
    assert found["optimum_is_noisy"]
    assert found["noise"] == 0.3
    assert found["best"][0]["posterior_mean"] < found["best"][0]["score"]
    assert found["rules"][-1]["rule"] == "posterior mean"
    inside = 0
    for o in outcome.observations:
        estimate = outcome.estimate(o.pattern)
        assert estimate is not None
        inside += estimate[1] <= exact(o.pattern) <= estimate[2]
    assert inside >= 13
    assert "posterior mean" in page
    plain = searched(tmp_path / "plain", evaluator={"type": "function", "instance": 2})
    assert not plain.as_json()["optimum_is_noisy"]
    assert "posterior_mean" not in plain.as_json()["best"][0]


def test_a_baseline_of_another_length_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"confirm\.baselines.*a pattern of 4 layers"):
        searched(tmp_path, confirm={"baselines": ["AAMM MM"]})
