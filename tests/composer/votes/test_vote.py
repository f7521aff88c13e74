"""What votes: posterior means where the noise of scores is known, else scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.nas.config import AggregatorConfig, SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.report.summary import summary
from hybridtron.composer.space.space import Space
from hybridtron.composer.votes.aggregate import aggregate
from hybridtron.composer.votes.noise import Noise
from hybridtron.composer.votes.vote import posterior_means, vote
from hybridtron.config.load import build

GIVEN = Noise(0.08, math.inf)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def drawn(instance: int, patterns: int = 64) -> tuple[Space, list[Observation]]:
    space, noisy = Space(("A", "M", "S"), 8), Chain(8, 3, instance, noise=0.08)
    generator = np.random.default_rng(instance)
    return space, [Observation(p, noisy(p)) for p in sorted({space.draw(generator) for _ in range(patterns)})]


def test_posterior_means_vote_where_the_noise_is_known():
    space, seen = drawn(100)
    found, means = vote(AggregatorConfig(), space, seen, GIVEN), posterior_means(space, seen, GIVEN)
    assert means is not None
    assert [o.pattern for o in means] == [o.pattern for o in seen]
    assert found.by == "posterior mean"
    assert found.pattern == aggregate(space, means, 5, 1, 0).pattern
    assert sorted(score for cluster in found.clusters for score in cluster) == sorted(o.score for o in means)
    assert {o.score for o in found.members} <= {o.score for o in means}


@pytest.mark.parametrize(
    ("config", "noise"),
    [({}, None), ({}, Noise(0.08, 2)), ({"by": "score"}, GIVEN)],
    ids=["unknown", "pooled over too few", "as in the paper"],
)
def test_else_scores_vote(config, noise):
    space, seen = drawn(100)
    assert vote(AggregatorConfig(**config), space, seen, noise) == aggregate(space, seen, 5, 1, 0)


def test_scores_too_large_for_a_process_vote_themselves():
    """Its means would be no numbers, which no later reader of a recorded vote takes."""
    space, seen = drawn(100)
    seen = [Observation(o.pattern, 1e200 * o.score) for o in seen]
    assert posterior_means(space, seen, GIVEN) is None


def test_too_few_different_scores_vote_themselves():
    space, seen = drawn(100, patterns=3)
    assert posterior_means(space, seen, GIVEN) is None
    assert vote(AggregatorConfig(), space, seen, GIVEN).by == "score"


@pytest.mark.parametrize("instance", [105, 107, 109])
def test_a_lucky_pattern_is_elected_by_scores_and_not_by_posterior_means(instance):
    """It is better than three in four, and its score two standard deviations of the noise above all others."""
    space, seen = drawn(instance)
    exact = Chain(8, 3, instance)
    fair = sorted(seen, key=lambda o: exact(o.pattern))[len(seen) * 3 // 4].pattern
    high = max(o.score for o in seen) + 2 * GIVEN.deviation
    seen = [Observation(o.pattern, high if o.pattern == fair else o.score) for o in seen]
    assert vote(AggregatorConfig(by="score"), space, seen, GIVEN).pattern == fair
    assert exact(vote(AggregatorConfig(), space, seen, GIVEN).pattern) > exact(fair) + 0.2


@pytest.mark.parametrize(
    ("engine", "by", "sentence"),
    [
        ({"noise": 0.3}, "posterior mean", "Posterior means voted, not scores"),
        ({}, "score", "Scores voted, noise included"),
    ],
)
def test_the_page_the_terminal_and_result_json_say_what_voted(tmp_path, engine, by, sentence):
    config = {
        "name": "small",
        "folder": str(tmp_path),
        "evaluations": 12,
        "space": {"blocks": ["attn", "mlp"], "layers": 4},
        "evaluator": {"type": "function", "instance": 2, "noise": 0.3},
        "engine": {"type": "random", **engine},
    }
    outcome, page = run_search(build(config, SearchConfig))
    assert json.loads((tmp_path / "result.json").read_text())["voted_by"] == by
    for text in (page.read_text(), summary(outcome)):
        assert sentence in text
    assert f"Clusters of {by}s" in page.read_text()
    rules = {row["rule"]: row["pattern"] for row in outcome.alternatives()}
    assert rules["N_0"] == outcome.text(outcome.aggregate.pattern)
