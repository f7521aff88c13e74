"""What a search tells of itself at its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hybridtron.composer.engines.bayesian import leave_one_out
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.report.outcome import Outcome, fit_surrogate
from hybridtron.composer.report.page import write_page
from hybridtron.composer.report.summary import summary
from hybridtron.composer.votes.aggregate import aggregate
from hybridtron.config.load import build


def outcome_of(folder: Path, **changes) -> tuple[Outcome, Path]:
    mapping = {
        "name": "small",
        "folder": str(folder),
        "evaluations": 12,
        "space": {"blocks": ["attn", "mlp"], "layers": 4},
        "evaluator": {"type": "function", "instance": 1},
        "engine": {"type": "random"},
    }
    return run_search(build({**mapping, **changes}, SearchConfig))


def test_each_rule_is_reported_as_if_it_had_been_asked_for(tmp_path):
    outcome, _ = outcome_of(tmp_path / "search", aggregator={"clusters": 2, "top": 1, "context": 1})
    for row, context in zip(outcome.alternatives(), (0, 1, "all"), strict=False):
        expected = aggregate(outcome.step.space, outcome.observations, 2, 1, context).pattern
        assert row["pattern"] == outcome.text(expected)
    assert len(outcome.aggregate.voters) > 1


def test_a_best_cluster_of_one_is_reported(tmp_path):
    alone, page = outcome_of(tmp_path / "alone", aggregator={"clusters": 12})
    assert len(alone.aggregate.voters) == 1
    assert len({row["pattern"] for row in alone.alternatives()}) == 1
    words = "The best cluster holds one pattern only"
    assert words in page.read_text()
    assert words in summary(alone)
    assert alone.as_json()["note"].startswith(words)
    many, page = outcome_of(tmp_path / "many", aggregator={"clusters": 1})
    assert words not in page.read_text() + summary(many)
    assert many.as_json()["note"] is None


def test_the_surrogate_is_fitted_to_the_last_of_many_and_says_so(tmp_path):
    whole, page = outcome_of(tmp_path / "search")
    assert whole.surrogate is not None
    assert len(whole.surrogate.scores) == 12
    assert "the last" not in page.read_text()
    fit = fit_surrogate(whole.step, most=8)
    assert fit is not None
    last = whole.step.finished[-8:]
    assert fit.scores.tolist() == [o.score for o in last]
    np.testing.assert_array_equal(fit.mean, leave_one_out(whole.step.space, last)[0])
    page = write_page(replace(whole, surrogate=fit), tmp_path / "search")
    assert "Of 12 evaluations, the last 8." in page.read_text()


def test_few_different_scores_have_no_surrogate(tmp_path):
    outcome, page = outcome_of(tmp_path / "search", evaluations=3)
    assert outcome.surrogate is None
    assert "Not drawn" in page.read_text()
