"""Cells of equal parameters and tokens, and the best row of each."""

import pytest

from hybridtron.errors import UserError
from hybridtron.laws import fit
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
