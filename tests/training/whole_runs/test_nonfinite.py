"""A loss or gradient that is not finite never reaches the weights."""

import json
import math

import pytest
import torch

from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from hybridtron.training.single_process import load
from tests.training.runs import resolved_tiny


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_too_many_in_a_row_stop_the_run_with_the_checkpoint_intact(tiny, hybridtron):
    run = tiny.parent / "run"
    result = hybridtron(
        "train", tiny, "optimizer.lr=1e30", "schedule.warmup_steps=0", "checkpoint.save_every=1",
        "train.max_skipped_steps=3"
    )  # fmt: skip
    assert result.returncode == 1
    assert "3 steps in a row" in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 300
    assert "step_" in (run / "latest").read_text()
    skipped = [row for row in rows(run) if row["skipped"]]
    assert skipped[-1]["skipped"] >= 2
    assert skipped[-1]["loss"] is None or skipped[-1]["grad_norm"] is None
    model = load(run)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.fixture
def engine():
    config = resolved_tiny()
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        yield build_engine(config, parallel_context)[0]


def poison_loss(model, value):
    return model.final_norm.register_forward_hook(lambda module, inputs, output: output * value)


def poison_one_gradient(model, value):
    return model.layers["1"].norm.weight.register_hook(lambda gradient: gradient * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("poison", [poison_loss, poison_one_gradient])
def test_a_poisoned_step_is_skipped_and_training_goes_on(poison, value, engine):
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    batch = [(tokens, tokens.roll(-1, 1))]
    assert engine.train_step(batch, 1e-3).applied
    before = {name: p.detach().clone() for name, p in engine.chunks[0].named_parameters()}
    handle = poison(engine.chunks[0], value)
    result = engine.train_step(batch, 1e-3)
    handle.remove()
    assert math.isfinite(result.loss) == (poison is poison_one_gradient)
    assert not result.applied
    assert all(torch.equal(p, before[name]) for name, p in engine.chunks[0].named_parameters())
    assert engine.train_step(batch, 1e-3).applied
    assert not any(torch.equal(p, before[name]) for name, p in engine.chunks[0].named_parameters() if p.dim() > 1)
