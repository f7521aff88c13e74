"""Weights & Biases is asked for by a config key, and only then needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from hybridtron.config.load import load
from hybridtron.distributed.environment import read_environment
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve


def resolved(tiny, *overrides):
    return resolve(load(tiny, ["schedule.warmup_steps=1", *overrides], RunConfig))


def test_a_missing_package_is_named_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setattr("hybridtron.training.callbacks.wandb.find_spec", lambda name: None)
    config = resolved(tiny, "train.wandb=scaling")
    with pytest.raises(UserError, match=r"train\.wandb = scaling: .* not installed.*hybridtron\[wandb\]"):
        train(config, read_environment())
    assert not config.run_folder.exists()


def test_a_resumed_run_continues_its_own_run_there(tiny, monkeypatch):
    """In place of the package, which needs an account, stands what it was called with."""
    opened, logged, closed = [], [], []

    def init(**arguments):
        opened.append(arguments)
        return SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: closed.append(True))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr("hybridtron.training.callbacks.wandb.find_spec", lambda name: True)
    run = train(resolved(tiny, "train.wandb=scaling", "train.steps=2"), read_environment())
    train(resolved(tiny, "train.wandb=scaling", "train.steps=3"), read_environment(), resume=True)
    assert [(o["project"], o["name"], o["config"]["train"]["steps"]) for o in opened] == [
        ("scaling", "tiny", 2), ("scaling", "tiny", 3)
    ]  # fmt: skip
    assert opened[0]["id"] == opened[1]["id"]
    assert [step for step, _ in logged] == [1, 2, 3]
    assert logged[0][1]["loss"] == run.metrics[0]["loss"]
    assert len(closed) == 2
