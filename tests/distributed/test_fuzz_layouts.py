"""Random models train alike in random layouts; more of them by hand: see `fuzz_layouts`."""

import json
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from tests.distributed import walk
from tests.distributed.fuzz_layouts import CASES, GRADIENT, LOSS, NOISE, _differences, make_cases, run
from tests.distributed.layouts import TABLE, Layout
from tests.distributed.models import BLOCKS, COMPARED, MODELS, MOVED, OPTIMIZER


@pytest.fixture(autouse=True)
def tables_as_before():
    """Take drawn models out of the tables again, which other files of tests read in the same process."""
    with ExitStack() as stack:
        for table in (BLOCKS, MODELS, OPTIMIZER, TABLE):
            stack.enter_context(patch.dict(table))
        yield


def test_random_models_in_random_layouts_are_those_of_one_process(tmp_path):
    found = run(CASES, 4, tmp_path)
    assert len(found) == CASES == 12
    assert not any(found.values()), found


def test_every_primitive_has_its_turn():
    cases = make_cases(CASES, 4)
    blocks = [BLOCKS[name] for case in cases.values() for name in MODELS[case.model]["pattern"].split()]
    assert {block["type"] for block in blocks} == set(MIXERS)
    used = {key for case in cases.values() for key, value in case.parallel.items() if value not in (1, False, "none")}
    used |= {"data"} if any(case.data > 1 for case in cases.values()) else set()
    assert used >= {"tensor", "context", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "data", "recompute"}
    assert "cpu_offload_layers" in used


def test_context_parallelism_does_not_cut_branches_of_channels(monkeypatch):
    """It shares out the heads of sequence branches alone; tensor parallelism cuts both."""
    odd = [{"type": "attention", "num_heads": 4}, {"type": "swiglu", "ffn_hidden_size": 31}]
    monkeypatch.setitem(BLOCKS, "odd", {"type": "parallel", "branches": odd})
    monkeypatch.setitem(MODELS, "odd", {"pattern": "odd"})
    assert walk.run_config(Layout("odd", parallel={"context": 2})).parallel.context == 2
    with pytest.raises(UserError, match=r"parallel.tensor = 2: ffn_hidden_size of odd gives 31"):
        walk.run_config(Layout("odd", parallel={"tensor": 2}))
    monkeypatch.setitem(BLOCKS, "odd", {"type": "parallel", "branches": [{"type": "attention", "num_heads": 1}, *odd]})
    with pytest.raises(UserError, match=r"tensor x context = 2: num_heads of odd gives 1"):
        walk.run_config(Layout("odd", parallel={"context": 2}))


def test_a_distance_counts_where_rounding_does_not_explain_it(tmp_path):
    def write(name, loss, vanishing, ordinary):
        distances = {"vanishing": vanishing, "ordinary": ordinary}
        found = {"losses": [loss] * COMPARED, "grad_norms": [1.0] * COMPARED, "gradient_distance": distances}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))

    write("model", 5.0, 0.0, 0.0)
    write(f"{MOVED}model", 5.0 + 1e-7, 1e-2, 1e-7)
    write("rounded", 5.0 + LOSS / 2, 1e-2 * NOISE * 0.9, GRADIENT * 0.9)
    assert _differences("model", "rounded", tmp_path, moved=True) == []
    assert _differences("model", "rounded", tmp_path) == ["gradient of vanishing by 3.6e-02"]
    write("wrong", 5.0 + 2 * LOSS, 1e-2 * NOISE * 1.1, GRADIENT * 1.1)
    wrong = ["losses by 4.0e-05", "gradient of vanishing by 4.4e-02", "gradient of ordinary by 2.2e-04"]
    assert _differences("model", "wrong", tmp_path, moved=True) == wrong
