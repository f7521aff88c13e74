"""A short run that leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from hybridtron.cli.main import main
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.proxy_run import train_proxy
from hybridtron.training.validation.resolve import resolve


def test_it_ends_where_a_whole_run_ends_and_writes_nothing(tiny):
    overrides = ["train.steps=5"]
    config = resolve(load(tiny, overrides, RunConfig))
    loss = train_proxy(config)
    assert not config.run_folder.exists()
    assert main(["train", str(tiny), *overrides]) == 0
    assert json.loads((config.run_folder / "summary.json").read_text())["valid_loss"] == loss


def test_a_loss_that_is_not_finite_is_told_as_such(tiny):
    overrides = ["train.steps=9", "train.max_skipped_steps=2", "optimizer.lr=1e30", "schedule.warmup_steps=0"]
    assert train_proxy(resolve(load(tiny, overrides, RunConfig))) == float("inf")


def test_held_out_tokens_are_needed(tiny):
    with pytest.raises(UserError, match=r"data\.valid is missing"):
        train_proxy(resolve(load(tiny, ["data.valid=null"], RunConfig)))
