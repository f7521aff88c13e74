"""Noise pooled over seeds, and what the Gaussian process makes of it."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
import torch

from hybridtron.composer.costs.cost import Cost
from hybridtron.composer.costs.pareto import scalarised
from hybridtron.composer.engines.bayesian import fit, posterior
from hybridtron.composer.engines.discrete import Engine, Observation
from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import read_progress
from hybridtron.composer.nas.worker import _propose, prepare
from hybridtron.composer.space.space import Space
from hybridtron.composer.votes.noise import Noise, pooled_noise, with_noise
from hybridtron.config.load import build

SEARCH = {
    "name": "small",
    "evaluations": 12,
    "space": {"blocks": ["attn", "mlp"], "layers": 4},
    "evaluator": {"type": "function", "instance": 1, "noise": 0.1},
    "engine": {"type": "bayesian", "start": 4},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def planted(generator, seeds_of, common=0.5, deviation=0.08):
    """Scores by pattern and seed: pattern + seed + noise."""
    effects = generator.normal(scale=common, size=20)
    return {
        (i,): {seed: i + effects[seed] + deviation * generator.normal() for seed in seeds_of(i)} for i in range(400)
    }


def test_pooled_noise_leaves_out_what_a_seed_does_to_all_patterns():
    noise = pooled_noise(planted(np.random.default_rng(0), lambda i: (0, 1)))
    assert noise is not None
    assert noise.deviation == pytest.approx(0.08, rel=0.1)
    assert noise.freedom == 399
    unequal = pooled_noise(planted(np.random.default_rng(1), lambda i: (0,) if i % 2 else (0, 1 + i % 3, 5)))
    assert unequal is not None
    assert unequal.deviation == pytest.approx(0.08, rel=0.15)
    assert unequal.freedom == 200 * 2 - 4


def test_pooled_noise_is_that_of_a_two_way_table():
    scores = {(i,): {0: a, 1: b} for i, (a, b) in enumerate([(1.0, 2.0), (3.0, 3.5), (2.0, 4.0)])}
    noise = pooled_noise(scores)
    assert noise is not None
    differences = [b - a for a, b in [(1.0, 2.0), (3.0, 3.5), (2.0, 4.0)]]
    assert noise.deviation == pytest.approx(np.std(differences, ddof=1) / 2**0.5)
    assert noise.freedom == 2
    assert pooled_noise({(0,): {0: 1.0}, (1,): {0: 2.0}}) is None
    assert pooled_noise({(0,): {0: 1.0, 1: 2.0}}) is None  # one pattern cannot tell noise from a seed


def test_errors_are_pooled_only_where_enough_patterns_have_several_seeds():
    seen = [Observation((0,), 1.0, error=0.5, seeds=4)]
    assert with_noise(seen, Noise(0.2, 30))[0].error == pytest.approx(0.1)
    assert with_noise(seen, Noise(0.2, math.inf))[0].error == pytest.approx(0.1)
    assert with_noise(seen, Noise(0.2, 2))[0].error == with_noise(seen, None)[0].error == 0


def test_the_engine_is_given_pooled_or_known_errors(monkeypatch):
    """One seed tells no noise, as before; several do, and the config's key goes before both."""
    seen = []
    monkeypatch.setattr(Engine, "propose", lambda self, history, count, generator: seen.append(history.finished) or [])
    chain = Chain(4, 2, 1, noise=0.1)
    for seeds, engine in (([0], {}), ([0, 1], {}), ([0, 1], {"noise": 0.3})):
        config = build({**SEARCH, "seeds": seeds, "engine": {**SEARCH["engine"], **engine}}, SearchConfig)
        search = prepare(config)
        patterns = list(search.space.enumerate())[:8]
        names = [" ".join(search.space.names(pattern)) for pattern in patterns]
        rows = [{"row": "propose", "step": 0, "patterns": names}]
        for pattern, text in zip(patterns, names, strict=True):
            rows += [{"row": "result", "pattern": text, "seed": s, "score": chain(pattern, s)} for s in seeds]
        step = read_progress(config, search.space, rows).steps[-1]
        monkeypatch.setattr(type(config.engine), "propose", Engine.propose)
        _propose(search, step, 1, np.random.default_rng(0))
    alone, pooled, known = ([o.error for o in finished] for finished in seen)
    assert set(alone) == {0.0}
    assert len(set(pooled)) == 1
    assert 0.03 < pooled[0] * 2**0.5 < 0.25
    assert known == pytest.approx([0.3 / 2**0.5] * 8)


def test_a_known_noise_is_that_of_the_process_and_scales_with_a_weighed_score():
    space = Space(("A", "M"), 6)
    chain = Chain(6, 2, 0)
    seen = [Observation(p, chain(p), error=0.05) for p in list(space.enumerate())[::4]]
    model = fit(space, seen)
    scale = float(model.outcome_transform.stdvs)
    np.testing.assert_allclose(model.likelihood.noise.numpy() * scale**2, 0.05**2)
    np.testing.assert_array_equal(
        posterior(model, space, [seen[0].pattern])[0],
        posterior(fit(space, [Observation(o.pattern, o.score) for o in seen], 0.05), space, [seen[0].pattern])[0],
    )
    weighed = scalarised(seen, [Cost("parameters", (3.0, 1.0))], np.random.default_rng(0))
    spans = [np.ptp([o.score for o in some]) for some in (weighed, seen)]
    assert weighed[0].error > 0
    assert weighed[0].error / 0.05 <= 1.2 / spans[1]


def test_the_posterior_mean_with_the_noise_known_picks_better_patterns_than_the_luckiest_score():
    """The short form of `benchmarks/composer.py --noise 0.08`."""
    space = Space(("A", "M", "S"), 8)
    regret: dict[str, list[float]] = {"best single": [], "posterior mean": []}
    for instance in range(10):
        exact, noisy = Chain(8, 3, instance), Chain(8, 3, instance, noise=0.08)
        generator = np.random.default_rng(instance)
        tried = list({space.draw(generator) for _ in range(64)})
        seen = [Observation(p, noisy(p), error=0.08) for p in sorted(tried)]
        means, _ = posterior(fit(space, seen), space, [o.pattern for o in seen])
        best = max(exact(p) for p in tried)
        regret["best single"].append(best - exact(max(seen, key=lambda o: o.score).pattern))
        regret["posterior mean"].append(best - exact(seen[int(means.argmax())].pattern))
    assert fmean(regret["posterior mean"]) < 0.7 * fmean(regret["best single"])
