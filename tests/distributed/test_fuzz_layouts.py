"""Random runs train alike in random layouts; more of them by hand: see `fuzz_layouts`."""

import json
import math
import re
from functools import partial

import pytest

from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from tests.distributed import fuzz_layouts, walk
from tests.distributed.drawn_cases import Case, Leg, draw_cases, from_json
from tests.distributed.fuzz_layouts import CASES, NOISE, differences, run
from tests.distributed.layouts import Layout
from tests.distributed.models import BLOCKS, MODELS

SEED, ENDS, NAN = 16, (2, 3, 4), math.nan
ALIKE = Case({"precision": {"format": "fp32"}, "model": {"blocks": {}}}, [Leg()] * len(ENDS), ENDS)


def test_random_runs_in_random_layouts_are_those_of_one_process(tmp_path):
    cases = {str(index): case for index, case in enumerate(draw_cases(CASES, SEED, ends=ENDS))}
    found = run(cases, tmp_path)
    assert len(found) == CASES
    assert not any(found.values()), found


def test_every_primitive_has_its_turn_and_every_kind_of_layout():
    cases = draw_cases(CASES, SEED, ends=ENDS)
    assert {block["type"] for case in cases for block in case.sections["model"]["blocks"].values()} == set(MIXERS)
    legs = [leg for case in cases for leg in case.legs]
    used = {key for leg in legs for key in leg.parallel or {}}
    assert used >= {"tensor", "context", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "sequence"}
    assert used >= {"distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap"}
    assert used >= {"recompute", "cpu_offload_layers"}
    assert {leg.recorded for leg in legs} == {False, True}
    assert max(leg.data for leg in legs) > 1


def test_every_topology_optimizer_and_option_has_its_turn():
    every = [case.sections for case in draw_cases(CASES, SEED, ends=ENDS)]
    models, optimizers = [each["model"] for each in every], [each["optimizer"] for each in every]
    topologies = {"plain", "sandwich", "parallel", "hyper_connections", "attention_residuals"}
    assert {model["residual"]["type"] for model in models} == topologies
    assert {model["tie_embeddings"] for model in models} == {"mtp" in model for model in models} == {False, True}
    assert {each.get("type") for each in optimizers} == {None, "muon"}
    assert {key for each in optimizers for key in each} >= {"ema", "clip_groups"}
    assert {each["precision"]["format"] for each in every} == {"fp32", "bf16"}
    assert {each["data"]["documents"] for each in every} == {"flow", "isolate"}
    assert any("batch_warmup" in each["train"] for each in every)


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
    case, write, layouts = ALIKE, partial(written, tmp_path), partial(laid_out, tmp_path, "case")
    write("case alone", 0, ENDS[-1])
    write("case moved 1", 0, ENDS[0], 1e-7, 1e-6, {"vanishing": 1e-2, "ordinary": 1e-7})
    layouts(1e-5, 0.0, {"vanishing": 1e-2 * NOISE * 0.9, "ordinary": 1e-4})
    assert differences(case, "case", tmp_path, float64=False, moves=1) == []
    assert differences(case, "case", tmp_path, float64=False) == ["gradient of vanishing in step 0, layout 0: 3.6e-02"]
    layouts(4e-5, 0.0, {"vanishing": 1e-2 * NOISE * 1.1, "ordinary": 3e-4})
    assert differences(case, "case", tmp_path, float64=False, moves=1) == [
        "loss of step 1, layout 0: 4.0e-05, by rounding 1.0e-07",
        "gradient of vanishing in step 0, layout 0: 4.4e-02, by rounding 1.0e-02",
        "gradient of ordinary in step 0, layout 0: 3.0e-04, by rounding 1.0e-07",
    ]
    write("case moved 2", 0, ENDS[0], 2e-5, 1e-6, {"vanishing": 2e-2, "ordinary": 1e-7})  # what differs most counts
    assert differences(case, "case", tmp_path, float64=False, moves=2) == [
        "gradient of ordinary in step 0, layout 0: 3.0e-04, by rounding 1.0e-07",
    ]
    layouts(1e-6)
    assert differences(case, "case", tmp_path, float64=True) == ["loss of step 1, layout 0: 1.0e-06"]


@pytest.mark.parametrize(
    ("key", "wrong", "what"),
    [
        ("losses", [5.0, NAN], "loss of step 1"),
        ("mtp_losses", [6.0, NAN], "further loss of step 1"),
        ("grad_norms", [1.0, NAN], "norm of step 1"),
        ("expert_loads", [{"1": [0.5, 0.5]}, {"1": [0.5, NAN]}], "load of 1 in step 1"),
        ("logits", [[0.0, NAN, 0.0]], "generated"),
        ("evaluated", NAN, "evaluated"),
        ("weights", {"head": NAN}, "head"),
    ],
)
def test_a_distance_counts_where_one_value_is_not_finite(tmp_path, key, wrong, what):
    write = partial(written, tmp_path)
    write("case alone", 0, ENDS[-1])
    write("case moved 1", 0, ENDS[-1], **{key: wrong})  # NaN of rounding explains nothing
    laid_out(tmp_path)
    assert differences(ALIKE, "case", tmp_path, float64=False) == []
    laid_out(tmp_path, **{key: wrong})
    for moves in range(2):
        (found,) = differences(ALIKE, "case", tmp_path, float64=False, moves=moves)
        assert found in (f"{what}, layout 0: inf", f"{what}, layout 0: nan")


def test_values_that_are_nan_in_one_process_too_are_no_distance(tmp_path):
    written(tmp_path, "case alone", 0, ENDS[-1], losses=[5.0, NAN, 5.0, 5.0], mtp_losses=[None] * 4)
    laid_out(tmp_path, losses=[5.0, NAN], mtp_losses=[None] * 2)
    assert differences(ALIKE, "case", tmp_path, float64=False) == [
        "further loss of step 2, layout 1: inf",
        "further loss of step 3, layout 2: inf",
    ]


def test_processes_that_fail_are_reported_with_what_they_show(tmp_path, monkeypatch):
    """Before a case is trained, and after all are."""
    monkeypatch.setattr(fuzz_layouts, "PROCESSES", 1)
    shown = re.compile(r"its processes end with 1:\n.*KeyError: 'train'$", re.DOTALL)
    for name in ("first", "last"):
        written(tmp_path, f"{name} alone", 0, ENDS[-1])
        laid_out(tmp_path, name)
        found = run({"first": ALIKE, "last": ALIKE}, tmp_path)  # without a section train
        assert found["first"] == ""
        assert shown.match(found["last"].strip())


def test_rounding_is_measured_again_where_experts_are_chosen(tmp_path, monkeypatch):
    """And processes that fail meanwhile are reported."""
    cases = {
        name: Case({**ALIKE.sections, "model": {"blocks": {"1": {"type": kind}}}}, ALIKE.legs, ENDS)
        for name, kind in (("plain", "mlp"), ("routed", "hyena_experts"), ("ends", "mlp"))
    }
    launched = []

    def launch(command, processes, output):
        task = json.loads((tmp_path / "cases.json").read_text())
        launched.append((task["rounding"], list(task["cases"])))
        for name in task["cases"]:
            if not task["rounding"]:
                written(tmp_path, f"{name} alone", 0, ENDS[-1])
                laid_out(tmp_path, name, 1.0)
            elif name == "ends":
                output.write("out of memory")
                return 9
            else:
                move = task["rounding"][1]
                written(tmp_path, f"{name} moved {move}", 0, ENDS[-1], losses=[5.0, 5.0 + (move == 3)] * 2)
        return 0

    monkeypatch.setattr(fuzz_layouts, "launch", launch)
    assert run(cases, tmp_path) == {
        "plain": "loss of step 1, layout 0: 1.0e+00, by rounding 0.0e+00",
        "routed": "",
        "ends": "its processes end with 9:\nout of memory",
    }
    assert launched == [(None, [*cases]), ([6e-8, 1], [*cases]), ([6e-8, 2], ["routed"]), ([6e-8, 3], ["routed"])]


def written(folder, name, first, end, loss=0.0, weight=0.0, gradients=None, **keys):
    """Write what was found in steps from `first` to `end`; `loss` is added to the last."""
    count = end - first
    found = {"losses": [5.0] * (count - 1) + [5.0 + loss], "grad_norms": [1.0] * count, "mtp_losses": [6.0] * count}
    found |= {"expert_loads": [{"1": [0.5, 0.5]}] * count, "gradients": {str(first): gradients or {}}}
    found |= {"evaluated": 5.0, "logits": [[0.0] * 3], "weights": {"head": weight}, **keys}
    (folder / f"{name}.json").write_text(json.dumps(found))


def laid_out(folder, name="case", *first, **keys):
    """Write what layouts found, all what one process does but the first, with other keys."""
    for leg, (start, end) in enumerate(zip((0, *ENDS), ENDS, strict=False)):
        other = {key: value for key, value in keys.items() if leg == 0}
        written(folder, f"{name} {leg}", start, end, *(first if leg == 0 else ()), **other)
