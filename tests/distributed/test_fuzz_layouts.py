"""Random runs train alike in random layouts; more of them by hand: see `fuzz_layouts`."""

import json

import pytest

from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from tests.distributed import walk
from tests.distributed.drawn_cases import Case, Leg, draw_cases, from_json
from tests.distributed.fuzz_layouts import CASES, NOISE, differences, run
from tests.distributed.layouts import Layout
from tests.distributed.models import BLOCKS, MODELS

SEED, ENDS = 11, (2, 3, 4)


def test_random_runs_in_random_layouts_are_those_of_one_process(tmp_path):
    cases = {str(index): case for index, case in enumerate(draw_cases(CASES, SEED, ends=ENDS))}
    found = run(cases, tmp_path)
    assert len(found) == CASES
    assert not any(found.values()), found


def test_every_primitive_has_its_turn_and_every_kind_of_layout():
    cases = draw_cases(CASES, SEED, ends=ENDS)
    assert {block["type"] for case in cases for block in case.sections["model"]["blocks"].values()} == set(MIXERS)
    used = {key for case in cases for leg in case.legs for key in leg.parallel or {}}
    assert used >= {"tensor", "context", "pipeline", "virtual_pipeline", "expert", "recompute", "cpu_offload_layers"}
    assert used >= {"distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap"}
    assert {leg.recorded for case in cases for leg in case.legs} == {False, True}


def test_a_case_is_read_as_it_was_written():
    for case in draw_cases(3, SEED, ends=ENDS):
        assert from_json(json.loads(json.dumps(case.as_json()))) == case


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
    case = Case({"precision": {"format": "fp32"}}, [Leg()] * len(ENDS), ENDS)

    def write(name, first, end, loss=0.0, weight=0.0, gradients=None):
        count = end - first
        found = {
            "losses": [5.0] * (count - 1) + [5.0 + loss],
            "grad_norms": [1.0] * count,
            "mtp_losses": [None] * count,
        }
        found |= {"expert_loads": [{"1": [0.5, 0.5]}] * count, "gradients": {str(first): gradients or {}}}
        found |= {"evaluated": 5.0, "logits": [[0.0]], "weights": {"head": weight}}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))

    def layouts(*keys):
        for leg, (first, end) in enumerate(zip((0, *ENDS), ENDS, strict=False)):
            write(f"case {leg}", first, end, *(keys if leg == 0 else ()))

    write("case alone", 0, ENDS[-1])
    write("case moved", 0, ENDS[0], 1e-7, 1e-6, {"vanishing": 1e-2, "ordinary": 1e-7})
    layouts(1e-5, 0.0, {"vanishing": 1e-2 * NOISE * 0.9, "ordinary": 1e-4})
    assert differences(case, "case", tmp_path, float64=False, moved=True) == []
    assert differences(case, "case", tmp_path, float64=False) == ["gradient of vanishing in step 0, layout 0: 3.6e-02"]
    layouts(4e-5, 0.0, {"vanishing": 1e-2 * NOISE * 1.1, "ordinary": 3e-4})
    assert differences(case, "case", tmp_path, float64=False, moved=True) == [
        "loss of step 1, layout 0: 4.0e-05, by rounding 1.0e-07",
        "gradient of vanishing in step 0, layout 0: 4.4e-02, by rounding 1.0e-02",
        "gradient of ordinary in step 0, layout 0: 3.0e-04, by rounding 1.0e-07",
    ]
    layouts(1e-6)
    assert differences(case, "case", tmp_path, float64=True) == ["loss of step 1, layout 0: 1.0e-06"]
