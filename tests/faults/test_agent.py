"""The agent dies once of each fault, and always leaves a record of it."""

from __future__ import annotations

import json

import pytest

from hybridtron.faults.agent import ATTEMPT, RANK, START_SECONDS, Agent
from hybridtron.faults.plan import Fault


class Died(Exception):
    """Takes the place of the end of the process."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts an agent with one fault, as the next attempt does."""
    (tmp_path / "run").mkdir()
    (tmp_path / "fired").mkdir()
    monkeypatch.setenv(RANK, "0")
    monkeypatch.setenv(START_SECONDS, "1")
    monkeypatch.setattr(Agent, "_later", lambda agent, seconds, action: None)  # every start is over before its moment

    def die(agent):
        raise Died

    monkeypatch.setattr(Agent, "_die", die)

    def start(fault, attempt):
        monkeypatch.setenv(ATTEMPT, str(attempt))
        agent = Agent(tmp_path / "run", tmp_path / "fired", [fault])
        agent.before_start()
        return agent

    return start


def test_a_start_that_is_over_before_its_moment_is_interrupted_at_the_step_of_the_fault(start, tmp_path):
    fault = Fault(number=0, kind="kill_starting", rank=0, step=7, draw=0.9)
    recorded = []
    for attempt in (1, 2):
        with pytest.raises(Died):
            start(fault, attempt).before_step(7)
        recorded.append(sorted(file.name for file in (tmp_path / "fired").iterdir()))
    assert recorded == [["0.armed"], ["0.armed", "0.json"]]
    assert json.loads((tmp_path / "fired" / "0.json").read_text())["attempt"] == 2
    start(fault, 3).before_step(7)  # it does not happen again
