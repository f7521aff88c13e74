"""The data-repetition law on its published runs, and where its valleys are flat."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import differential_evolution, minimize_scalar
from scipy.special import huber

from hybridtron.laws import fit
from hybridtron.laws.data.read import read_runs
from hybridtron.laws.families.loss import data_repetition
from tests.laws.planted_formulas import LAWS as PLANTED

DATA = Path(__file__).parents[2] / "data"
C4 = {
    "E": math.exp(0.6254804),
    "A": math.exp(6.255414),
    "B": math.exp(7.3049974),
    "alpha": 0.3526596,
    "beta": 0.3526596,
}


def test_repeated_data_give_the_published_objective_and_a_flat_valley():
    """2305.16264 found R_D 15.4 and R_N 5.31 from its fit of runs without repetition; its optimum lies elsewhere."""
    table = DATA / "data_repetition.csv"
    runs = read_runs([table], ("n_params", "tokens", "unique_tokens", "loss"))
    columns = {name: runs[name] for name in ("n_params", "tokens", "unique_tokens")}

    def objective(decays):
        predicted = data_repetition.loss(**columns, **C4, R_D=math.exp(decays[0]), R_N=math.exp(decays[1]))
        return float(huber(1e-3, np.log(predicted / runs["loss"])).sum())

    assert objective(np.log([15.387756, 5.309743])) == pytest.approx(0.015825936, rel=1e-6)
    found = fit("data-repetition", table, fix=C4, bootstrap=100, holdout=0)
    assert found.objective < 0.01581
    assert found.objective <= evolve_two(objective) * (1 + 1e-6)
    assert not found.intervals
    sentence = next(line for line in found.verdict if line.startswith("The valley of R_D is flat: any value from "))
    low, high = (float(end) for end in sentence.split(" from ")[1].split(" fits")[0].split(" to "))
    assert low < 12 < 200 < high
    for R_D in (12.0, 200.0):
        best = minimize_scalar(lambda R_N, R_D=R_D: objective([math.log(R_D), R_N]), bounds=(-2, 9), method="bounded")
        assert best.fun < 1.01 * found.objective


def evolve_two(objective) -> float:
    return float(differential_evolution(objective, [(-2, 9), (-2, 9)], seed=1, popsize=8, maxiter=40).fun)


def test_decays_that_the_data_determine_have_no_flat_valley():
    found = fit("data-repetition", PLANTED["data-repetition"].runs(8, 0.002), bootstrap=100, holdout=0)
    assert not any("flat" in line for line in found.verdict)
    assert set(found.intervals) == set(found.parameters)
