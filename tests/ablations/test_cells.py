"""Axes become cells, whose names their configs determine."""

from __future__ import annotations

import re

import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.errors import UserError
from tests.ablations.studies import LAYERS, LEARNING_RATE, plan, study


def names(made):
    return [cell.name for cell in made.cells]


def test_a_product_begins_with_the_reference(tiny):
    made = plan(tiny, axes={"lr": LEARNING_RATE, "layers": LAYERS})
    assert names(made) == [
        "lr-0.003_layers-hybrid",  # the base run's learning rate
        "lr-0.001_layers-hybrid",
        "lr-0.001_layers-attention",
        "lr-0.003_layers-attention",
    ]
    assert [(run.cell.name, run.seed) for run in made.runs[:2]] == [(made.cells[0].name, 0), (made.cells[0].name, 1)]
    run = made.runs[0]
    assert re.fullmatch(r"lr-0\.003_layers-hybrid-s0-[0-9a-f]{8}", run.name)
    assert run.config.run_folder == tiny.parent / "study" / "cells" / run.name
    assert run.config.seed == 0


def test_one_axis_at_a_time_keeps_the_others_at_the_base_run(tiny):
    made = plan(tiny, axes={"lr": LEARNING_RATE, "layers": LAYERS}, combine="one_at_a_time")
    assert names(made) == ["base", "lr-0.001", "layers-attention"]
    assert made.cells[1].config.model.pattern == made.cells[0].config.model.pattern


def test_random_draws_keep_the_first_when_there_are_more(tiny):
    axis = {"type": "random", "seed": 3, "keys": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}}}
    few, many = (plan(tiny, axes={"point": {**axis, "draws": draws}}) for draws in (2, 3))
    rates = [cell.config.optimizer.lr for cell in many.cells]
    assert rates[0] == 3e-3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert len(set(rates)) == 4
    assert [run.name for run in few.runs] == [run.name for run in many.runs][: len(few.runs)]


def test_draws_are_rounded_where_that_is_asked_for(tiny):
    keys = {"model.blocks.mlp.ffn_hidden_size": {"low": 10, "high": 90, "multiple_of": 16}}
    made = plan(tiny, axes={"point": {"type": "random", "draws": 4, "keys": keys}})
    assert all(cell.config.model.blocks["mlp"].ffn_hidden_size % 16 == 0 for cell in made.cells)


def test_constraints_and_exclude_leave_cells_out(tiny):
    axes = {"lr": LEARNING_RATE, "layers": LAYERS}
    excluded = plan(tiny, axes=axes, exclude=[{"lr": 1e-3, "layers": ["attention"]}])
    constrained = plan(tiny, axes=axes, constraints=["lr > 0.002 or layers == 'hybrid'"])
    by_key = plan(tiny, axes=axes, constraints=["optimizer.lr > 0.002 or model.pattern != '2*(attn mlp)'"])
    assert names(excluded) == names(constrained) == names(by_key)
    assert len(excluded.cells) == 3
    smaller = plan(tiny, axes=axes, constraints=["parameters >= 1e4", "tokens * 2 < flops"])
    assert len(smaller.cells) == 4


def test_a_constraint_over_axes_spares_configs_that_cannot_be(tiny):
    heads = {"type": "grid", "key": "model.blocks.attn.num_heads", "values": [4, 5]}
    with pytest.raises(UserError, match=r"^cell heads-5: model.blocks.attn.num_heads = 5: expected a divisor"):
        plan(tiny, axes={"heads": heads})
    assert names(plan(tiny, axes={"heads": heads}, constraints=["heads != 5"])) == ["heads-4"]


def test_a_cell_that_equals_another_is_trained_once(tiny):
    window = {"type": "grid", "key": "model.blocks.attn.rotary_fraction", "values": [1.0, 0.0]}
    layers = {"type": "variants", "variants": {"hybrid": [], "mamba": ["model.pattern=mamba mlp"]}}
    made = plan(tiny, axes={"rotary": window, "layers": layers})
    assert len(made.cells) == 3  # without attention, the rotary fraction changes nothing
    assert made.left_out == 1


def test_names_follow_the_config_and_the_data_but_not_where_they_lie(tiny, tmp_path):
    first = plan(tiny).runs[0].name
    assert plan(tiny, folder=str(tmp_path / "elsewhere")).runs[0].name == first
    config = yaml.safe_load(tiny.read_text())
    moved = tmp_path / "moved.yaml"
    moved.write_text(yaml.safe_dump({**config, "name": "other"}))
    assert plan(moved).runs[0].name == first
    moved.write_text(yaml.safe_dump({**config, "optimizer": {"lr": 3e-3, "weight_decay": 0.2}}))
    assert plan(moved).runs[0].name != first
    moved.write_text(yaml.safe_dump({**config, "data": {**config["data"], "train": config["data"]["valid"]}}))
    assert plan(moved).runs[0].name != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"loss": LEARNING_RATE}}, "axes.loss = 'loss': expected a name that is no column"),
        ({"axes": {"s": {**LEARNING_RATE, "key": "seed"}}}, "axes.s.key = 'seed': expected another key"),
        ({"exclude": [{"lr": 7}]}, r"exclude.lr = 7: no level of it; expected one of "),
        ({"exclude": [{"rate": 1}]}, r"exclude = 'rate': expected an axis: lr"),
        ({"constraints": ["lr <"]}, "constraints.* expected a comparison of keys and numbers"),
        ({"constraints": ["optimizer.lrr < 1"]}, r"cell .*: constraints: no key, .* optimizer.lrr \(nearest: .*\.lr\)"),
        ({"constraints": ["lr > 1"]}, "constraint 'lr > 1' leaves out the reference"),
        ({"constraints": ["parameters < 1"]}, "constraints: leave out the reference"),
        ({"seeds": [1, 1]}, "seeds = .*: expected different whole numbers"),
        ({"axes": {"lr": {**LEARNING_RATE, "values": [1, 1]}}}, "axes.lr: two levels are called 1"),
        ({"axes": {"lr": {**LEARNING_RATE, "key": "optimizer.rate"}}}, "optimizer.rate: unknown key"),
        (
            {"axes": {"fast": {"type": "grid", "key": "train.cuda_graphs", "values": [False, True]}}},
            "axes.fast: false, true are the same training; expected levels that change what is trained",
        ),
        ({"overrides": ["data.valid=null"]}, "data.valid is missing"),
        ({"rules": {"train.steps": {"coefficient": 1.0}}}, "an axis of type budget instead"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        plan(tiny, **changes)


def test_an_error_in_a_level_is_not_said_to_be_on_the_command_line(tiny, capsys):
    file = tiny.parent / "study.yaml"
    axes = {"width": {"type": "grid", "key": "model.hidden_size", "values": [32, 0]}}
    file.write_text(yaml.safe_dump(study(tiny, axes=axes)))
    assert main(["ablate", str(file)]) == 2
    message = capsys.readouterr().err
    assert "cell width-0: model.hidden_size = 0: expected at least 1" in message
    assert "(in the overrides and levels of the study)" in message
    assert main(["ablate", str(file), "train.compile=true"]) == 2
    assert "train: unknown key: a key of the base run; expected it in its file, or as a" in capsys.readouterr().err
    assert main(["ablate", str(file), "max_parallel=0"]) == 2
    assert "(on the command line)" in capsys.readouterr().err


def test_the_help_shows_a_key_of_a_study(capsys):
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    printed = capsys.readouterr().out
    assert "such as max_parallel=4" in printed
    assert "optimizer.lr" not in printed
