"""What every engine does, and what each is there for."""

from __future__ import annotations

from itertools import product
from statistics import median

import numpy as np
import pytest
import torch

from hybridtron.composer.engines.bayesian import Bayesian, _encode, fit, leave_one_out
from hybridtron.composer.engines.discrete import Evolution, Exhaustive, History, Observation, RandomSearch
from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.space.space import Space

torch.set_num_threads(1)

SMALL = Space(("A", "M"), 4, at_most={0: 3})
ENGINES = {
    "random": RandomSearch(type="random"),
    "exhaustive": Exhaustive(type="exhaustive"),
    "evolution": Evolution(type="evolution", population=5, sample=2),
    "bayesian": Bayesian(type="bayesian", start=4, candidates=64),
}


def search(engine, space, function, budget, seed=0, batch=1):
    seen: list[Observation] = []
    while len(seen) < budget:
        generator = np.random.default_rng([seed, len(seen)])
        new = engine.propose(History(space, seen, seed=seed), min(batch, budget - len(seen)), generator)
        if not new:
            break
        seen += [Observation(pattern, function(pattern)) for pattern in new]
    return seen


@pytest.mark.parametrize("name", ENGINES)
def test_every_pattern_is_proposed_once_and_then_none(name):
    function = Chain(4, 2, instance=1)
    seen = search(ENGINES[name], SMALL, function, budget=99, batch=6 if name == "bayesian" else 1)
    assert sorted(o.pattern for o in seen) == sorted(SMALL.enumerate())


@pytest.mark.parametrize("name", ENGINES)
def test_what_others_work_on_is_not_proposed_again(name):
    function = Chain(4, 2, instance=1)
    seen = [Observation(p, function(p)) for p in list(SMALL.enumerate())[:6]]
    pending = list(SMALL.enumerate())[6:12]
    proposed = ENGINES[name].propose(History(SMALL, seen, pending), 3, np.random.default_rng(0))
    assert sorted(proposed) == sorted(list(SMALL.enumerate())[12:])


@pytest.mark.parametrize("name", ENGINES)
def test_proposals_follow_from_what_is_known_and_the_seed(name):
    space, function = Space(("A", "M", "S"), 6), Chain(6, 3, instance=2)
    seen = [Observation(p, function(p)) for p in (space.draw(np.random.default_rng(i)) for i in range(7))]
    first, second = (ENGINES[name].propose(History(space, seen), 2, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 2


def test_evolution_keeps_the_youngest_and_changes_one_step():
    space, function = Space(("A", "M"), 8), Chain(8, 2, instance=0)
    engine = Evolution(type="evolution", population=4, sample=4)
    seen = search(engine, space, function, budget=30)
    for i in range(8, 30):
        parent = max(seen[i - 4 : i], key=lambda o: o.score).pattern
        near = set(space.neighbours(parent))
        near |= {far for pattern in near for far in space.neighbours(pattern)}
        assert seen[i].pattern in near


@pytest.mark.parametrize(("layers", "blocks"), [(5, 2), (4, 3)])
def test_the_function_knows_its_optimum(layers, blocks):
    for instance in range(5):
        function = Chain(layers, blocks, instance)
        scores = {p: function(p) for p in product(range(blocks), repeat=layers)}
        assert max(scores, key=lambda p: scores[p]) == function.optimum
        assert max(scores.values()) == pytest.approx(1.0)
        assert min(scores.values()) == pytest.approx(0.0)


def test_noise_belongs_to_pattern_and_seed():
    noisy = Chain(4, 2, 0, noise=0.1)
    assert noisy((0, 1, 0, 1), 1) == noisy((0, 1, 0, 1), 1) != noisy((0, 1, 0, 1), 2)
    draws = [noisy((0, 1, 0, 1), seed) - Chain(4, 2, 0)((0, 1, 0, 1)) for seed in range(400)]
    assert np.std(draws) == pytest.approx(0.1, rel=0.15)


def test_bayesian_search_finds_the_best_of_64_within_30_evaluations():
    for instance in range(2):
        function = Chain(6, 2, instance)
        seen = search(Bayesian(type="bayesian"), Space(("A", "M"), 6), function, budget=30, seed=instance, batch=3)
        assert function.optimum in [o.pattern for o in seen]


def test_the_sobol_start_is_one_sequence_of_the_seed_however_many_are_asked_for_at_a_time():
    space, function = Space(("A", "M", "S"), 6), Chain(6, 3, instance=0)
    engine = Bayesian(type="bayesian", start=6)
    starts = {
        (seed, batch): [o.pattern for o in search(engine, space, function, 6, seed, batch)]
        for seed in (0, 1)
        for batch in (1, 6)
    }
    assert starts[0, 1] == starts[0, 6] != starts[1, 6] == starts[1, 1]


def test_bayesian_search_beats_random_and_evolution_in_a_large_space():
    space, regret = Space(("A", "M"), 16), {}
    bayesian = Bayesian(type="bayesian", start=16, candidates=256)
    for name, engine in {**ENGINES, "evolution": Evolution(type="evolution"), "bayesian": bayesian}.items():
        found = []
        for instance in range(3):
            seen = search(engine, space, Chain(16, 2, instance), budget=48, seed=instance, batch=16)
            found.append(1 - max(o.score for o in seen))
        regret[name] = median(found)
    assert regret["bayesian"] < min(regret["random"], regret["evolution"])


def test_leaving_one_out_is_what_it_says():
    """Against a process fitted to all and then conditioned on all but one, with the same hyperparameters."""
    space, function = Space(("A", "M"), 6), Chain(6, 2, instance=0)
    seen = [Observation(p, function(p)) for p in list(space.enumerate())[::5]]
    mean, deviation = leave_one_out(space, seen)
    model = fit(space, seen)
    with torch.no_grad():
        x = _encode(space, [o.pattern for o in seen])
        noise = float(model.likelihood.noise)
        prior = float(model.mean_module.constant)
        covariance = model.covar_module(x).to_dense()
        scale, centre = float(model.outcome_transform.stdvs), float(model.outcome_transform.means)
        y = (torch.tensor([o.score for o in seen], dtype=torch.float64) - centre) / scale
        for i in (0, 5, len(seen) - 1):
            rest = [j for j in range(len(seen)) if j != i]
            inner = covariance[rest][:, rest] + noise * torch.eye(len(rest), dtype=torch.float64)
            weights = torch.linalg.solve(inner, covariance[rest, i])
            assert mean[i] == pytest.approx(float(prior + weights @ (y[rest] - prior)) * scale + centre, abs=1e-6)
            variance = covariance[i, i] + noise - weights @ covariance[rest, i]
            assert deviation[i] == pytest.approx(float(variance) ** 0.5 * scale, abs=1e-6)


def test_the_surrogate_sees_one_input_for_each_layer_and_block():
    assert _encode(Space(("A", "M", "S"), 2), [(0, 2), (1, 1)]).tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
