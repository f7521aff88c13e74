import math

import pytest

from hybridtron.mad.scoring.aggregate import on_common_settings, renamed, scores
from hybridtron.mad.scoring.estimate import estimate
from hybridtron.mad.tasks.protocol import TASKS, settings
from hybridtron.mad.training.presets import preset
from hybridtron.mad.training.suite import chosen_settings
from tests.mad.small import row

SEARCH = {"preset": "search", "protocol": preset("search").fingerprint(), "num_cells": 1}


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


def test_intervals_end_where_accuracies_do():
    found = estimate([0.99, 1.0])
    assert (found.low, found.high) == (pytest.approx(0.9315, abs=1e-4), 1.0)
    assert str(found) == "99.5 (93.1–100.0)"
    assert estimate([0.0, 0.01]).low == 0.0


def test_a_seed_that_is_not_done_is_left_out_and_named_and_costs_nothing():
    some = settings("compression")
    rows = [row(setting=setting, seed=0) for setting in some]
    rows += [row(setting=setting, seed=1) for setting in some[:3]]
    rows += [row(task="memorization", setting=settings("memorization")[0], seed=seed) for seed in (0, 1)]
    (score,) = scores(rows)
    assert len(score.tasks["compression"].best) == 11
    assert {task: one.accuracy["micro"].seeds for task, one in score.tasks.items()} == {
        "compression": 1, "memorization": 2,
    }  # fmt: skip
    assert score.overall["micro"].low is None
    assert score.left_out == (
        "mh_attention (paper): compression, seed 1: 3 of the 11 settings that seed 0 has, left out",
    )  # fmt: skip


def test_seeds_of_different_settings_are_not_mixed():
    one, two = settings("compression")[:2]
    (score,) = scores([row(setting=one, seed=3), row(setting=two, seed=5)])
    assert score.seeds == (3,)
    assert score.left_out == (
        "mh_attention (paper): compression, seed 5: 0 of the 1 settings that seed 3 has, left out",
        "mh_attention (paper): compression, vocab_size=32: not there for seed 3, left out",
    )


def test_settings_without_all_cells_are_left_out_and_named():
    rows = [row(num_cells=2), row(num_cells=2, lr=5e-4), row(num_cells=2, setting=settings("compression")[1])]
    (score,) = scores(rows)
    assert len(score.tasks["compression"].best) == 1
    assert score.left_out == ("mh_attention (paper): compression, vocab_size=32, seed 0: 1 of 2 cells, left out",)
    assert not scores([row(num_cells=6)])


def test_the_same_rows_twice_are_no_more_cells_than_once():
    assert not scores([row(num_cells=2), row(num_cells=2, test_micro=0.9)])


def whole(preset_name="paper", **changes):
    """A row for every setting of all six tasks."""
    return [
        row(task=task, setting=setting, preset=preset_name, protocol=preset(preset_name).fingerprint(),
            num_cells=1, **changes)
        for task, setting in chosen_settings(preset(preset_name), None, {})
    ]  # fmt: skip


OTHER = {"vocab_size": 5, "seq_len": 32, "num_train_examples": 12800}


def test_only_the_protocols_settings_count_and_the_others_are_reported():
    rows = [*whole(test_micro=0.5), row(setting=OTHER, test_micro=1.0)]
    (score,) = scores(rows, protocol_only=True)
    assert score.complete
    assert score.overall["micro"].mean == pytest.approx(0.5)
    assert {task: len(some) for task, some in score.others.items()} == {"compression": 1}
    assert score.as_json()["other_settings"]["compression"]["vocab_size=5"]["micro"]["mean"] == 1.0
    (of_all,) = scores(rows)
    assert not of_all.complete
    assert of_all.tasks["compression"].coverage() == "11 of 11 + 1 other"


def test_a_part_of_the_protocol_is_not_complete():
    (score,) = scores(whole()[:-1], protocol_only=True)
    assert not score.complete
    assert score.tasks["memorization"].coverage() == "5 of 6"
    assert score.tasks["compression"].coverage() == ""
    (alone,) = scores([row(setting=OTHER)], protocol_only=True)
    assert alone.tasks["compression"].coverage() == "1 other"
    assert not alone.complete


def test_the_protocol_of_search_is_the_baselines():
    (score,) = scores(
        [*whole("search"), row(**SEARCH, setting=settings("compression")[1], test_micro=1.0)], protocol_only=True
    )
    assert score.complete
    assert (score.changes, score.overall["micro"].mean) == ("", 0.5)
    assert list(score.others) == ["compression"]


def test_architectures_are_compared_over_the_settings_that_all_have():
    easy, hard = settings("compression")[:2]
    rows = [
        row(setting=easy, test_micro=0.9),
        row(setting=hard, test_micro=0.3),
        row(setting=easy, fingerprint="g", architecture="part", test_micro=0.8),
    ]
    first, second = on_common_settings(scores(rows))
    assert (first.overall["micro"].mean, second.overall["micro"].mean) == (0.9, 0.8)
    assert scores(rows)[0].overall["micro"].mean == pytest.approx(0.6)
    assert not on_common_settings(scores([rows[1], rows[2]]))


def test_what_differs_from_the_preset_is_reported():
    short = preset("search", max_steps=10)
    changed = {**SEARCH, "protocol": short.fingerprint(), "planned_steps": 10}
    assert scores([row(**changed)], protocol_only=True)[0].changes == "steps 10 in place of 2,000"
    batch = {**SEARCH, "protocol": preset("search", batch_size=8).fingerprint(), "planned_steps": 2000}
    assert scores([row(**batch, batch_size=8)], protocol_only=True)[0].changes == "batches of 8 in place of 128"
    assert "another batch size" in scores([row(**batch)], protocol_only=True)[0].changes
    assert scores([row(preset="mine")], protocol_only=True)[0].changes == "no preset of this version"


def test_one_model_under_two_names_is_called_as_asked():
    (score,) = scores([row(architecture="hybrid_1b")])
    same, nothing = renamed(score, "hybrid_1b", [])
    assert (same, nothing) == (score, None)
    asked, notice = renamed(score, "hybrid_7b", ["width 4096 -> 128"])
    assert notice == "hybrid_7b is the same model to the tasks as hybrid_1b"
    assert (asked.architecture, asked.notes) == ("hybrid_7b", ("width 4096 -> 128", notice))
    (both,) = scores([row(architecture="hybrid_1b"), row(architecture="hybrid_7b", seed=1)])
    assert both.architecture == "hybrid_1b = hybrid_7b"


def test_architectures_and_presets_are_reported_apart_and_sorted():
    rows = [row(test_micro=0.2), row(fingerprint="g", test_micro=0.9), row(protocol="q", test_micro=0.5)]
    assert [score.overall["micro"].mean for score in scores(rows)] == [0.9, 0.5, 0.2]


def test_scores_do_not_depend_on_the_order_of_rows():
    rows = [row(num_cells=3, lr=lr, test_micro=lr, seed=seed) for lr in (1e-3, 1e-4, 5e-4) for seed in (0, 1)]
    assert scores(rows)[0].as_json() == scores(rows[::-1])[0].as_json()
