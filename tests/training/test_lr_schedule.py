"""The learning rate of every step."""

import pytest

from hybridtron.config.load import build
from hybridtron.training.config import RunConfig
from hybridtron.training.lr_schedule import learning_rate
from tests.conftest import TINY


def run(**schedule):
    data = {"train": "a", **TINY["data"]}
    train = {**TINY["train"], "steps": 100}
    optimizer = {"lr": 1.0}
    return build({**TINY, "data": data, "train": train, "optimizer": optimizer, "schedule": schedule}, RunConfig)


def test_warm_up_is_linear_and_reaches_the_peak():
    config = run(type="constant", warmup_steps=10)
    assert [learning_rate(config, step) for step in (1, 5, 10, 11, 100)] == [0.1, 0.5, 1.0, 1.0, 1.0]


def test_cosine_ends_at_the_floor_and_is_halfway_in_the_middle():
    config = run(type="cosine", warmup_steps=20, min_lr_ratio=0.1)
    assert learning_rate(config, 20) == 1.0
    assert learning_rate(config, 60) == pytest.approx(0.55)
    assert learning_rate(config, 100) == pytest.approx(0.1)


def test_wsd_is_flat_then_falls_linearly_to_the_floor():
    config = run(type="wsd", warmup_steps=10, decay_steps=20, min_lr_ratio=0.0)
    assert learning_rate(config, 80) == 1.0
    assert learning_rate(config, 90) == pytest.approx(0.5)
    assert learning_rate(config, 100) == 0.0


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(run(type="constant"), 1) == 1.0
