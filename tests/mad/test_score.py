import math

import pytest

from hybridtron.mad.score import estimate, scores
from hybridtron.mad.tasks import TASKS, settings
from tests.mad.small import row


def test_the_cell_that_is_best_on_the_selecting_split_counts_with_its_test_accuracy():
    rows = [
        row(num_cells=2, lr=1e-3, select_micro=0.8, test_micro=0.6),
        row(num_cells=2, lr=5e-4, select_micro=0.7, test_micro=0.9),
    ]
    (score,) = scores(rows)
    assert score.overall["micro"].mean == 0.6


def test_the_preset_says_which_accuracy_selects():
    rows = [
        row(num_cells=2, lr=1e-3, accuracy="macro", select_micro=0.8, select_macro=0.1, test_macro=0.2),
        row(num_cells=2, lr=5e-4, accuracy="macro", select_micro=0.7, select_macro=0.3, test_macro=0.5),
    ]
    (score,) = scores(rows)
    assert score.overall["macro"].mean == 0.5
    assert score.headline == "macro"


def test_a_task_is_the_mean_of_its_settings_and_the_whole_that_of_the_tasks():
    rows = [
        row(task="compression", setting=settings("compression")[0], test_micro=0.2),
        row(task="compression", setting=settings("compression")[1], test_micro=0.6),
        row(task="memorization", setting=settings("memorization")[0], test_micro=1.0),
    ]
    (score,) = scores(rows)
    assert score.tasks["compression"].accuracy["micro"].mean == pytest.approx(0.4)
    assert score.overall["micro"].mean == pytest.approx(0.7)
    assert list(score.tasks) == [task for task in TASKS if task in score.tasks]


def test_intervals_are_students_t_over_seeds():
    found = estimate([0.5, 0.6, 0.7])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-6)
    assert str(found) == "60.0 ± 24.8"
    assert estimate([0.5]).low is None
    assert str(estimate([0.5])) == "50.0"


def test_settings_without_all_cells_and_seeds_are_left_out_and_named():
    rows = [
        row(seed=0),
        row(seed=1),
        row(seed=0, setting=settings("compression")[1]),
        row(seed=0, task="memorization", setting=settings("memorization")[0], num_cells=1),
        row(seed=1, task="memorization", setting=settings("memorization")[0], num_cells=1),
    ]
    (score,) = scores(rows)
    assert score.tasks["compression"].num_settings == 1
    assert score.seeds == (0, 1)
    assert len(score.left_out) == 1
    assert "compression" in score.left_out[0]
    assert not scores([row(num_cells=6)])


def test_architectures_and_presets_are_told_apart_and_sorted():
    rows = [row(test_micro=0.2), row(fingerprint="g", test_micro=0.9), row(protocol="q", test_micro=0.5)]
    assert [score.overall["micro"].mean for score in scores(rows)] == [0.9, 0.5, 0.2]


def test_scores_do_not_depend_on_the_order_of_rows():
    rows = [row(num_cells=3, lr=lr, test_micro=lr, seed=seed) for lr in (1e-3, 1e-4, 5e-4) for seed in (0, 1)]
    assert scores(rows)[0].as_json() == scores(rows[::-1])[0].as_json()
