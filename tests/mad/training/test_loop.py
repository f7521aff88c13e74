import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.models.proxy_model import initial_values
from hybridtron.mad.tasks.generate import generate
from hybridtron.mad.training import presets
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import GRID, PRESETS, Cell, preset
from hybridtron.mad.training.stack import Stack

SETTING = {"vocab_size": 8, "seq_len": 16, "num_train_examples": 64}
MLP = from_layers(["mlp"])
RECALLING = from_layers(["short-conv", "mlp"])  # sees the token before


def numbers(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds",)} for row in rows]


def short(**changes):
    return preset("smoke", **{"max_steps": 6, "batch_size": 16, "eval_examples": 32, "cells": GRID, **changes})


def test_rows_hold_both_accuracies_the_curve_and_what_was_trained():
    rows = train_setting(MLP, "compression", SETTING, short(), [0, 1])
    assert [(row["seed"], row["lr"], row["weight_decay"]) for row in rows] == [
        (seed, cell.lr, cell.weight_decay) for seed in (0, 1) for cell in GRID
    ]
    for row in rows:
        assert row["setting"] == SETTING
        assert row["curve"][-1][0] == row["steps"] == 6
        assert 0 <= row["test_micro"] <= 1
        assert 0 <= row["test_macro"] <= 1
        assert row["architecture"] == "mlp"
        assert row["stopped"] == "end"


def test_training_repeats_and_a_cell_does_not_depend_on_its_neighbours():
    whole = train_setting(MLP, "compression", SETTING, short(), [0, 1])
    assert numbers(train_setting(MLP, "compression", SETTING, short(), [0, 1])) == numbers(whole)
    (alone,) = train_setting(MLP, "compression", SETTING, short(cells=GRID[4:5]), [1])
    same = numbers(whole)[6 + 4]
    assert {key: alone[key] for key in ("test_micro", "test_loss", "curve")} == {
        key: same[key] for key in ("test_micro", "test_loss", "curve")
    }


@pytest.mark.parametrize("left", [[0, 2, 5], [4]], ids=str)
@pytest.mark.parametrize("one_pass", [False, True], ids=["cell by cell", "one pass"])
def test_cells_that_are_done_are_not_trained_and_the_others_do_not_feel_it(one_pass, left):
    train = partial(train_setting, MLP, "compression", SETTING, short(cells=GRID[:3]), [0, 1], one_pass=one_pass)
    pairs = [(seed, cell) for seed in (0, 1) for cell in GRID[:3]]
    planned = []
    done = {pair for i, pair in enumerate(pairs) if i not in left}
    rows = train(done=done, on_step=lambda _, of, __: planned.append(of))
    whole = train()
    for row, same in zip(rows, (whole[i] for i in left), strict=True):
        if one_pass:
            assert (row["seed"], row["lr"], row["weight_decay"]) == (same["seed"], same["lr"], same["weight_decay"])
            assert row["test_loss"] == pytest.approx(same["test_loss"], abs=1e-5)
        else:
            assert numbers([row]) == numbers([same])
    assert set(planned) == {6 if one_pass else 6 * len(left)}
    assert train(done=pairs) == []


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_row_is_told_as_soon_as_its_cell_ends(one_pass):
    setting = {"vocab_size": 16, "seq_len": 16, "num_train_examples": 128}
    cells = (Cell(3e-3, 0.0), Cell(1e-6, 0.0))
    chosen = preset("paper", cells=cells, batch_size=32, max_steps=60, evaluations=12, eval_examples=64, stop_at=0.9)
    steps, told = [], []
    rows = train_setting(
        RECALLING, "memorization", setting, chosen, [0], one_pass=one_pass,
        on_step=lambda done, *_: steps.append(done), on_row=lambda row: told.append((row, steps[-1])),
    )  # fmt: skip
    assert [row for row, _ in told] == rows
    assert told[0][1] == rows[0]["steps"] < 60
    assert told[1][1] == (60 if one_pass else 120)


@pytest.mark.parametrize("one_pass", [False, True])
def test_every_step_tells_the_best_accuracy_of_the_last_evaluation(one_pass):
    chosen = preset("smoke", cells=GRID[:2], max_steps=6, evaluations=3, eval_examples=16)
    heard = []
    rows = train_setting(
        MLP, "compression", SETTING, chosen, [0], one_pass=one_pass,
        on_step=lambda step, planned, accuracy: heard.append(accuracy),
    )  # fmt: skip
    first, second = ([None, None, *(point[2] for point in row["curve"][:2] for _ in "ab")] for row in rows)
    best = [one if one is None else max(one, other) for one, other in zip(first, second, strict=True)]
    assert heard == (best if one_pass else [*first, *second])


def test_seeds_whose_cells_end_at_different_steps_are_those_of_cell_by_cell():
    """In one pass a cell keeps the examples of its seed when others leave the stack."""
    setting = {"vocab_size": 32, "seq_len": 16, "num_train_examples": 128}
    cells = (Cell(1e-2, 0.0), Cell(3e-3, 0.0), Cell(1e-4, 0.0))
    chosen = preset("paper", cells=cells, batch_size=32, max_steps=24, evaluations=6, eval_examples=64, stop_at=0.5)
    apart, one_pass = (
        train_setting(RECALLING, "memorization", setting, chosen, [0, 1, 5], one_pass=one_pass)
        for one_pass in (False, True)
    )
    assert len({row["steps"] for row in apart}) > 1
    for one, other in zip(apart, one_pass, strict=True):
        assert (one["seed"], one["steps"], one["stopped"]) == (other["seed"], other["steps"], other["stopped"])
        assert other["test_loss"] == pytest.approx(one["test_loss"], abs=1e-3)
        assert other["test_micro"] == pytest.approx(one["test_micro"], abs=1e-2)


def test_one_pass_for_all_cells_gives_the_same_rows():
    apart, one_pass = (
        train_setting(
            from_layers(["mh-attention"]), "in-context-recall", SETTING, short(cells=GRID[:2]), [0], one_pass=one_pass
        )
        for one_pass in (False, True)
    )
    for one, other in zip(apart, one_pass, strict=True):
        assert other["test_loss"] == pytest.approx(one["test_loss"], abs=1e-4)


@pytest.mark.parametrize("one_pass", [False, True])
def test_successive_halving_ends_the_worse_half_and_leaves_the_best_as_it_is(one_pass):
    setting = {"vocab_size": 16, "seq_len": 16, "num_train_examples": 128}
    cells = tuple(Cell(lr, 0.0) for lr in (1e-6, 3e-3, 1e-5, 3e-4, 1e-7))
    grid = preset("paper", cells=cells, batch_size=32, max_steps=24, evaluations=24, eval_examples=32, stop_at=2.0)
    train = partial(train_setting, RECALLING, "memorization", setting, one_pass=one_pass)
    heard = []
    rows = train(replace(grid, halving=True), [0, 1], on_row=heard.append)
    whole = train(replace(grid, cells=cells[1:2]), [0, 1])
    assert heard == rows
    for seed in (0, 1):
        ends = {row["lr"]: (row["steps"], row["stopped"]) for row in rows if row["seed"] == seed}
        assert sorted(ends.values()) == [(3, "pruned"), (3, "pruned"), (6, "pruned"), (12, "pruned"), (24, "end")]
        assert ends[3e-3] == (24, "end")
        assert ends[3e-4] == (12, "pruned")
    best, same = ([row for row in one if row["lr"] == 3e-3] for one in (rows, whole))
    for row, other in zip(best, same, strict=True):
        assert row["halving"]
        assert row["test_loss"] == pytest.approx(other["test_loss"], abs=1e-5 if one_pass else 0)
    if not one_pass:  # cells that are done are trained again, as the others' ends follow from them
        some = train(replace(grid, halving=True), [0], done={(0, cells[0]), (0, cells[1])})
        assert numbers(some) == numbers(rows[2:5])


def test_halving_is_another_protocol_of_its_cells_and_needs_several():
    halved = preset("paper", halving=True)
    assert preset("paper", lr=[1e-3]).fingerprint() == preset("paper").fingerprint() != halved.fingerprint()
    assert preset("paper", lr=[1e-3, 1e-4], halving=True).fingerprint() != halved.fingerprint()
    assert "halving" not in preset("paper").as_json()
    with pytest.raises(UserError, match="halving: is for several cells"):
        preset("search", halving=True)


def test_facts_are_memorized():
    setting = {"vocab_size": 64, "seq_len": 32, "num_train_examples": 256}
    chosen = preset("search", max_steps=200, batch_size=32, eval_examples=64)
    (row,) = train_setting(RECALLING, "memorization", setting, chosen, [0])
    assert row["test_micro"] > 0.95
    assert row["stopped"] == "reached"
    assert row["steps"] < 200


def test_a_hybrid_learns_recall_and_its_first_layer_alone_does_not():
    setting = {"vocab_size": 8, "seq_len": 32, "num_train_examples": 4096}
    chosen = preset("search", max_steps=100, batch_size=32, eval_examples=128)
    scores = [
        train_setting(from_layers(layers), "in-context-recall", setting, chosen, [0])[0]["test_micro"]
        for layers in (["short-conv", "attention"], ["short-conv"])
    ]
    assert scores[0] > 0.95
    assert scores[1] < 0.7


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        ("selective-copying", {"vocab_size": 8, "seq_len": 32, "num_tokens_to_copy": 4}),
        ("in-context-recall", {"vocab_size": 4, "seq_len": 16}),
    ],
)
def test_attention_learns_to_copy_and_to_recall_by_itself(task, setting):
    chosen = preset("search", max_steps=320, batch_size=32, eval_examples=128)  # four seeds end at 0.978 to 0.998
    candidate = from_layers(["mh-attention", "swiglu"] * 2)
    (row,) = train_setting(candidate, task, setting, chosen, [0])
    assert row["curve"][0][2] < 0.9
    assert row["test_micro"] >= 0.95


def test_a_cell_that_is_done_stops_and_leaves_the_others():
    setting = {"vocab_size": 16, "seq_len": 16, "num_train_examples": 128}
    cells = (Cell(1e-6, 0.0), Cell(3e-3, 0.0))
    chosen = preset("paper", cells=cells, batch_size=32, max_steps=120, evaluations=12, eval_examples=64)
    slow, fast = train_setting(RECALLING, "memorization", setting, chosen, [0])
    assert fast["stopped"] == "reached"
    assert fast["test_micro"] == 1.0
    assert fast["steps"] < slow["steps"] == 120
    assert slow["test_micro"] < 0.5


def test_madlab_scores_the_weights_of_the_evaluation_with_the_least_perplexity():
    """One batch of 128: its perplexity is exp(loss). A run of k steps has the weights of a longer one after k."""
    cells, setting = (Cell(1e-2, 0.0),), {**SETTING, "num_train_examples": 16}  # so few that it overfits
    train = partial(train_setting, RECALLING, "in-context-recall", setting, seeds=[0])

    def until(step, evaluations=1):
        chosen = preset("madlab", cells=cells, max_steps=step, batch_size=16, eval_examples=64, evaluations=evaluations)
        (row,) = train(preset=chosen)
        return row

    each = [until(step) for step in (20, 40, 60, 80)]
    best = min(each, key=lambda row: row["test_loss"])
    whole = until(80, evaluations=4)
    assert best["steps"] < whole["steps"] == 80
    assert whole["scored_step"] == best["steps"]
    for name in ("test_micro", "test_macro", "test_loss", "select_macro", "select_loss"):
        assert whole[name] == best[name], name
    assert [point[4] for point in whole["curve"]] == [row["test_loss"] for row in each]


def test_perplexity_is_the_mean_over_batches_of_128_examples():
    from hybridtron.mad.training.loop import _evaluate

    config = MLP.model(8, 16)
    stack = Stack(config, False, [initial_values(config, False, seed) for seed in (0, 1)])
    tokens, targets = (torch.from_numpy(part) for part in generate("in-context-recall", SETTING, "test", 0))
    found = _evaluate(stack, (tokens[None], targets[None]), torch.tensor([0, 0]), torch.tensor([0, 1]), 8)
    for cell, one in enumerate(found):
        parts = [
            stack.predict(*batch)[1][cell].item() for batch in zip(tokens.split(128), targets.split(128), strict=True)
        ]
        assert one.perplexity == pytest.approx(sum(map(math.exp, parts)) / 10, rel=1e-6)
        assert one.loss == pytest.approx(stack.predict(tokens, targets)[1][cell].item(), rel=1e-6)


def test_madlab_of_march_2024_starts_from_its_own_initial_values():
    short = {"cells": GRID[:1], "max_steps": 1, "eval_examples": 16}
    losses = {
        name: train_setting(MLP, "in-context-recall", SETTING, preset(name, **short), [0])[0]["curve"][0][1]
        for name in ("madlab", "madlab-2024-03")
    }
    assert losses["madlab"] != losses["madlab-2024-03"] == pytest.approx(math.log(8), abs=0.1)


def test_patience_ends_a_cell_that_no_longer_gains():
    chosen = preset("search", cells=(Cell(1e-7, 0.0),), max_steps=40, evaluations=20, patience=3, eval_examples=16)
    (row,) = train_setting(MLP, "compression", SETTING, chosen, [0])
    assert row["stopped"] == "patience"
    assert row["steps"] == 2 * 4  # an evaluation that sets the mark and three without a gain


def test_patience_waits_while_accuracy_stands_and_loss_falls():
    from hybridtron.mad.training.loop import _ending, _Run

    chosen = preset("search", patience=3)

    def stops_after(evaluations):
        run = _Run(0, Cell(1e-3, 0.0))
        for done, (reached, loss) in enumerate(evaluations, start=1):
            if _ending(run, loss, reached, loss, chosen):
                return done
        return None

    falling = [(0.3, 2.0 - 0.01 * i) for i in range(20)]
    assert stops_after(falling) is None
    assert stops_after([(0.3 + 0.01 * i, 2.0) for i in range(20)]) is None
    assert stops_after(falling + [(0.304, 1.809)] * 20) == 20 + 3
    assert stops_after([(0.3, 2.0)] * 20) == 4


def test_a_cell_that_diverges_is_recorded_and_ends():
    cells = (Cell(1e30, 0.0), Cell(1e-3, 0.0))
    bad, good = train_setting(MLP, "compression", SETTING, short(cells=cells, schedule="constant"), [0])
    assert bad["stopped"] == "diverged"
    assert bad["test_loss"] is None
    assert good["stopped"] == "end"


def test_the_schedule_falls_from_the_cells_rate_to_the_lowest():
    from hybridtron.mad.training.loop import _lr

    peak = torch.tensor([[1e-3], [1e-4]])
    rates = [_lr(peak, step, 100, PRESETS["paper"]) for step in (0, 50, 99)]
    assert torch.allclose(rates[0], peak)
    assert torch.allclose(rates[1], (peak + 1e-6) / 2)
    assert (rates[2] < 2e-6).all()
    assert (_lr(peak, 99, 100, PRESETS["madlab"]) == peak).all()


def test_presets_follow_the_protocol():
    paper, madlab = PRESETS["paper"], PRESETS["madlab"]
    assert len(paper.cells) == 6
    assert {cell.lr for cell in paper.cells} == {1e-4, 5e-4, 1e-3}
    assert {cell.weight_decay for cell in paper.cells} == {0.0, 0.1}
    assert (paper.betas, paper.schedule, paper.select_split) == ((0.9, 0.98), "cosine", "valid")
    assert (madlab.betas, madlab.schedule, madlab.select_split) == ((0.9, 0.999), "constant", "test")
    assert (madlab.accuracy, madlab.match_mad_lab, madlab.batch_size, madlab.epochs) == ("macro", True, 128, 200)
    assert paper.steps(12800) == 20_000
    assert paper.steps(800) == 1400
    assert madlab.evaluations == madlab.epochs
    assert paper.steps_between_evaluations(12800) == 200
    assert paper.steps_between_evaluations(256) == 10  # 1,280 examples train in them
    assert madlab.steps_between_evaluations(256) == 2
    assert preset("search", max_steps=5).steps_between_evaluations(12800) == 5
    assert len({chosen.fingerprint() for chosen in PRESETS.values()}) == 5


def test_rows_of_another_procedure_are_not_those_of_this_one(monkeypatch):
    before = PRESETS["paper"].fingerprint()
    monkeypatch.setattr(presets, "PROCEDURE", presets.PROCEDURE + 1)
    assert PRESETS["paper"].fingerprint() != before


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"preset 'papers': expected one of .*nearest: paper"):
        preset("papers")
