"""The step law: the best learning rate and batch of sweeps at several sizes and tokens."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import fit
from hybridtron.laws.data.runs import Runs

TRUTH = {"k": 1.79, "a": -0.713, "b": 0.307, "m": 0.58, "c": 0.571}  # as published, 2503.04715
CELLS = [(n, d) for n in (6e7, 2e8, 4e8, 1e9) for d in (2e9, 8e9, 3e10)]


def sweeps(seed: int, noise: float, cells=CELLS, shift: float = 1.0) -> Runs:
    """A grid of 7 x 7 about `shift` times the optimum of each cell, under a surface with a tilted bend."""
    rng = np.random.default_rng(seed)
    rows = []
    for n, d in cells:
        rate, batch = TRUTH["k"] * n ** TRUTH["a"] * d ** TRUTH["b"], TRUTH["m"] * d ** TRUTH["c"]
        off = np.exp(rng.uniform(-0.5, 0.5, 2))
        for x in np.geomspace(1 / 8, 8, 7):
            for y in np.geomspace(1 / 8, 8, 7):
                lr, bs = rate * off[0] * x * shift, batch * off[1] * y
                u, v = np.log(lr / rate), np.log(bs / batch)
                loss = 2 + 1e3 * n**-0.4 + 0.02 * u * u + 0.012 * v * v - 0.01 * u * v
                rows.append((n, d, lr, bs, loss * np.exp(noise * rng.standard_normal())))
    names = ("n_params", "tokens", "learning_rate", "batch_tokens", "loss")
    return Runs.of(**dict(zip(names, np.transpose(rows), strict=True)))


def test_sweeps_without_noise_give_the_law():
    found = fit("step", sweeps(1, 0.0), predict="N=7B,D=140B")
    assert found.parameters == pytest.approx(TRUTH, rel=1e-6)
    entry = found.predictions[0]
    assert entry["learning_rate"] == pytest.approx(1.79 * 7e9**-0.713 * 1.4e11**0.307)
    assert entry["batch_tokens"] == pytest.approx(0.58 * 1.4e11**0.571)


def test_intervals_cover_the_law_and_lowest_runs_are_told_apart():
    hits = np.zeros(len(TRUTH))
    for seed in range(20):
        found = fit("step", sweeps(seed, 0.001))
        hits += [found.intervals[name][0] <= value <= found.intervals[name][1] for name, value in TRUTH.items()]
    assert (hits >= 16).all()
    assert set(found.sensitivity) == {"lowest_run", "near_optimum_average"}
    assert found.verdict[-1].startswith("The lowest run of each cell alone would give a = ")


def test_a_sweep_whose_optimum_lies_outside_is_dropped_and_named():
    one, other = sweeps(1, 0.0, CELLS[1:]), sweeps(1, 0.0, CELLS[:1], shift=100.0)
    runs = Runs.of(**{name: np.concatenate([one[name], other[name]]) for name in one.columns})
    found = fit("step", runs)
    assert found.parameters == pytest.approx(TRUTH, rel=1e-6)
    assert any(
        w.startswith("edge minimum: ") and w.endswith("(cell N = 6e+07, D = 2e+09, dropped)") for w in found.warnings
    )


@pytest.mark.parametrize("cells", [CELLS[:2], [(1e8, 2e9), (2e8, 4e9), (4e8, 8e9), (8e8, 1.6e10)]])
def test_cells_that_do_not_span_sizes_and_tokens_are_refused(cells):
    with pytest.raises(UserError, match="expected at least three, of sizes and tokens that do not rise together"):
        fit("step", sweeps(1, 0.0, cells))


@pytest.mark.parametrize(
    ("point", "message"), [("N=1B", "two of N, D, C, M"), ("C=1e20", "step predicts from N and D")]
)
def test_a_point_needs_size_and_tokens(point, message):
    with pytest.raises(UserError, match=message):
        fit("step", sweeps(1, 0.0), predict=point)
