"""Cells of equal parameters and tokens, and the best row of each."""

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import LAWS, fit
from hybridtron.laws.data.cells import best_of_cells, cells
from hybridtron.laws.data.runs import Runs
from tests.laws import planted

RUNS = Runs.of(n_params=[1e8, 1e8, 1e8, 2e8], tokens=[1e9, 1.004e9, 2e9, 1e9], loss=[3.2, 3.1, 3.0, 2.9])


def test_tokens_that_agree_within_a_step_are_one_cell():
    assert len(set(cells(RUNS))) == 3
    assert cells(RUNS)[0] == cells(RUNS)[1]
    assert len(set(cells(RUNS.with_column("arch", ["a", "b", "a", "a"])))) == 4


def test_the_lowest_loss_of_each_cell_is_kept_and_counted():
    best = best_of_cells(RUNS)
    assert list(best.lines) == [2, 3, 4]
    assert best.notes == ("the lowest loss of each cell of equal n_params and tokens is kept: 3 of 4 rows",)


def test_shapes_of_one_size_are_kept_apart_for_a_law_that_reads_them():
    """The best of each shape, not the best shape, is what depth and width are read from."""
    shapes = RUNS.with_column("width", [512, 512, 512, 1024]).with_column("depth", [8, 32, 8, 8])
    assert len(best_of_cells(shapes)) == 3
    apart = best_of_cells(shapes, LAWS["depth-width"].columns)
    assert len(apart) == 4
    assert apart.notes[0].startswith("the lowest loss of each cell of equal n_params, width, depth and tokens is kept")
    runs = planted.depth_width_runs(3, 1e-3, 40)
    table = runs.columns | {"n_params": np.full(40, 1e9), "tokens": np.where(np.arange(40) < 20, 1e10, 1e11)}
    assert fit("depth-width", table, keep_best=True, bootstrap=0, holdout=0).n_points == 40


def test_where_there_are_no_cells_it_is_refused():
    with pytest.raises(UserError, match="keep_best needs n_params, tokens and loss; there is no number tokens"):
        best_of_cells(Runs.of(n_params=[1e8], loss=[3.0]))
    with pytest.raises(UserError, match="keep_best: learning-rate reads the sweep"):
        fit("learning-rate", planted.learning_rate_runs(1, 0.003), keep_best=True)


def test_a_law_about_every_run_has_no_best_of_a_cell():
    table = RUNS.columns | {"error": [0.5, 0.4, 0.3, 0.2]}
    with pytest.raises(UserError, match="keep_best: downstream is about loss and error of every run, of the worse"):
        fit("downstream", table, keep_best=True)
    with pytest.raises(UserError, match="keep_best: proxy is about score and loss of every run"):
        fit("proxy", planted.proxy_runs(1, -0.8, 20), keep_best=True)
