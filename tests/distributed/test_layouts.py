"""Every layout trains the same, and a checkpoint of one goes on in any other.

One set of processes walks the whole table; the tests look at what it found.
"""

import json
import sys

import pytest

from hybridtron.distributed.launch import launch
from tests.distributed.layouts import LAYOUTS, MODELS, PROCESSES, RESUMED, SAVED_AT, STEPS, TABLE

LOSS, NORM, GRADIENT = 1e-5, 1e-4, 1e-4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Layout -> losses, gradient norms, distance of gradients."""
    folder = tmp_path_factory.mktemp("layouts")
    code = launch([sys.executable, "-m", "tests.distributed.walk", str(folder)], PROCESSES)
    assert code == 0
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in TABLE}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", MODELS)
def test_one_process_learns(found, model):
    losses = found[model]["losses"]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_and_gradient_norms_are_those_of_one_process(found, name):
    expected = found[LAYOUTS[name].model]
    assert found[name]["losses"] == pytest.approx(expected["losses"], abs=LOSS)
    assert found[name]["grad_norms"] == pytest.approx(expected["grad_norms"], rel=NORM)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if LAYOUTS[n].model == "moe"])
def test_experts_are_chosen_as_by_one_process(found, name):
    loads = found[name]["expert_loads"]
    assert loads == found["moe"]["expert_loads"]
    for step in loads:
        assert {layer: len(shares) for layer, shares in step.items()} == {"1": 4, "3": 8}
        assert [sum(shares) for shares in step.values()] == pytest.approx([1, 1])


@pytest.mark.parametrize("name", [n for n in LAYOUTS if not LAYOUTS[n].parallel.get("distributed_optimizer")])
def test_every_gradient_is_that_of_one_process(found, name):
    distances = found[name]["gradient_distance"]
    assert len(distances) >= 15
    assert max(distances.values()) < GRADIENT, max(distances, key=distances.get)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_in_another_layout(found, name):
    expected = found[RESUMED[name].model]["losses"][SAVED_AT:]
    assert len(expected) >= 5
    assert found[name]["losses"] == pytest.approx(expected, abs=LOSS)


def test_the_table_is_as_large_as_it_should_be():
    assert len(LAYOUTS) >= 30
    assert len(RESUMED) >= 8
    assert PROCESSES == 8
