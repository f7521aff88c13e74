"""Budgets give steps, and rules follow their power laws."""

from __future__ import annotations

import pytest

from hybridtron.errors import UserError
from tests.ablations.studies import plan

WIDTH = {"type": "grid", "key": "model.hidden_size", "values": [32, 64]}


def test_groups_of_equal_flops_have_them(tiny):
    made = plan(tiny, axes={"width": WIDTH, "budget": {"type": "budget", "flops": [2e9, 4e9]}})
    for cell in made.cells:
        amount = cell.combination["budget"].budget[1]
        assert cell.numbers["flops"] == pytest.approx(amount, rel=0.05)
    assert len({cell.config.train.steps for cell in made.cells}) == 4


def test_a_budget_counts_the_smaller_batches_of_a_warm_up(tiny):
    warm_up = "train.batch_warmup=[{steps: 9, global_batch_size: 2}]"
    made = plan(tiny, axes={"budget": {"type": "budget", "flops": [1.06e8, 4e9]}}, overrides=[warm_up])
    short, long = made.cells
    assert short.config.train.steps < 9 < long.config.train.steps
    assert [cell.numbers["flops"] for cell in made.cells] == pytest.approx([1.06e8, 4e9], rel=0.05)


def test_a_ratio_counts_the_parameters_it_says(tiny):
    axes = {"budget": {"type": "budget", "tokens_per_parameter": [0.5, 2], "count": "non_embedding"}}
    made = plan(tiny, axes=axes)
    ratios = [cell.numbers["tokens"] / cell.numbers["non_embedding"] for cell in made.cells]
    assert ratios == pytest.approx([0.5, 2], rel=0.02)


def test_rules_set_keys_by_their_power_laws(tiny):
    rules = {
        "optimizer.lr": {"coefficient": 2.0, "powers": {"non_embedding": -0.5}},
        "train.global_batch_size": {"coefficient": 1e-4, "powers": {"flops": 0.5}, "multiple_of": 2},
        "schedule.warmup_steps": {"coefficient": 0.25, "powers": {"steps": 1}},
    }
    axes = {"width": WIDTH, "budget": {"type": "budget", "flops": [4e9, 16e9]}}
    for cell in plan(tiny, axes=axes, rules=rules).cells:
        config, numbers = cell.config, cell.numbers
        amount = cell.combination["budget"].budget[1]
        assert config.optimizer.lr == pytest.approx(2 * numbers["non_embedding"] ** -0.5, rel=1e-5)
        assert config.train.global_batch_size == pytest.approx(1e-4 * amount**0.5, abs=1)
        assert config.train.global_batch_size % 2 == 0
        assert config.schedule.warmup_steps == round(config.train.steps / 4)
        assert numbers["flops"] == pytest.approx(amount, rel=0.05)


def test_a_batch_rule_without_a_budget_keeps_the_tokens(tiny):
    made = plan(tiny, rules={"train.global_batch_size": {"coefficient": 8.0}}, overrides=["train.steps=8"])
    assert [(c.config.train.global_batch_size, c.config.train.steps) for c in made.cells] == [(8, 4), (8, 4)]


def test_rules_keep_their_bounds(tiny):
    rules = {"optimizer.lr": {"coefficient": 1.0, "powers": {"parameters": -0.1}, "at_most": 0.01}}
    axes = {"width": WIDTH}
    assert {cell.config.optimizer.lr for cell in plan(tiny, axes=axes, rules=rules).cells} == {0.01}


def test_a_key_without_a_number_is_refused(tiny):
    with pytest.raises(UserError, match=r"rules.schedule.type: holds 'cosine'; expected a key that holds a number"):
        plan(tiny, rules={"schedule.type": {"coefficient": 1.0}})
