"""The learning rate of every step."""

import re

import pytest

from hybridtron.config.load import build
from hybridtron.errors import UserError
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


def test_power_falls_from_the_last_flat_step_as_a_power_of_the_step():
    config = run(type="power", warmup_steps=10, flat_steps=25, exponent=0.5)
    assert [learning_rate(config, step) for step in (5, 10, 25)] == [0.5, 1.0, 1.0]
    assert learning_rate(config, 100) == pytest.approx(0.5)
    assert learning_rate(run(type="power", warmup_steps=10), 40) == pytest.approx(4**-0.51)
    assert learning_rate(run(type="power"), 9) == pytest.approx(9**-0.51)


def test_power_may_end_with_a_decay_of_what_it_has_fallen_to():
    config = run(type="power", warmup_steps=25, exponent=0.5, decay_steps=20, min_lr_ratio=0.2)
    assert learning_rate(config, 80) == pytest.approx((25 / 80) ** 0.5)
    assert learning_rate(config, 90) == pytest.approx((25 / 90) ** 0.5 * 0.6)
    assert learning_rate(config, 100) == pytest.approx(0.5 * 0.2)


def test_a_decay_may_fall_as_one_minus_the_root():
    config = run(type="wsd", decay_steps=40, decay_shape="1-sqrt", min_lr_ratio=0.0)
    assert [learning_rate(config, step) for step in (60, 70, 100)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"type": "cosine", "decay_shape": "1-sqrt"}, "schedule.decay_shape = '1-sqrt': expected linear"),
        ({"type": "wsd", "decay_steps": 9, "exponent": 0.4}, "schedule.exponent = 0.4: expected 0.51 with type wsd"),
        ({"type": "power", "decay_steps": 200}, "schedule.decay_steps = 200: expected at most train.steps"),
        ({"type": "power", "warmup_steps": 9, "flat_steps": 5}, "schedule.flat_steps = 5: expected at least"),
        ({"type": "cosine", "decay_steps": 5}, "schedule.decay_steps = 5: expected 0 with type cosine"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_the_type_are_refused(schedule, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        run(**schedule)
