"""When a run is saved."""

from types import SimpleNamespace

import pytest

from hybridtron.config.load import build
from hybridtron.training.checkpointing import save_schedule
from hybridtron.training.config import RunConfig
from tests.conftest import TINY


class Clock:
    """A monotonic clock that a test moves on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(save_schedule, "time", SimpleNamespace(monotonic=lambda: self.now))


def schedule(largest, is_main=True, **section):
    config = build({**TINY, "data": {**TINY["data"], "train": "none"}, "checkpoint": section}, RunConfig)
    return save_schedule.SaveSchedule(config, is_main, largest)


def test_a_run_is_saved_when_the_minutes_are_over(monkeypatch):
    clock = Clock(monkeypatch)
    each = schedule(lambda mine: mine, save_every_minutes=2, save_every=8)
    due = []
    for step in range(1, 13):
        clock.now += 50
        if each.is_due(step):
            due.append(step)
    assert due == [3, 6, 8, 11]  # 150 s after the start, 150 s after step 3, save_every, 150 s after step 8


@pytest.mark.parametrize("said", [0, 1])
def test_the_clock_of_the_first_process_decides(monkeypatch, said):
    clock = Clock(monkeypatch)
    given = []
    each = schedule(lambda mine: given.append(mine) or said, is_main=False, save_every_minutes=2)
    clock.now += 1000
    assert each.is_due(1) == bool(said)
    assert given == [0]
