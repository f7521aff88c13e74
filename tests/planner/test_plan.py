"""Plans of layouts that no machine here could run."""

import io
import json
import math
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from hybridtron.backends.megatron import tensor_overlap
from hybridtron.config.load import build
from hybridtron.planner.plan import plan
from hybridtron.planner.show import show_plan
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve

RUNS = Path(__file__).parents[2] / "configs/runs"
HIDDEN, FFN, HEADS, SEQ_LEN, VOCAB, BATCH, WIDTH = 64, 128, 8, 32, 320, 2, 4
BLOCKS = {
    "attn": {"type": "attention", "num_heads": HEADS},
    "mlp": {"type": "swiglu", "ffn_hidden_size": FFN},
    "moe": {"type": "moe", "num_experts": 4, "top_k": 2, "ffn_hidden_size": 32},
}
BLOCKS["gathered"] = {**BLOCKS["moe"], "dispatcher": "allgather"}
BLOCKS["latent"] = {**BLOCKS["moe"], "latent_size": HIDDEN // 4}
BLOCKS["tight"] = {**BLOCKS["moe"], "capacity_factor": 0.5}


def planned(pattern, gpus, model=(), optimizer=(), precision="fp32", train=(), gpus_per_node=8, **parallel):
    config = {"name": "x", "model": {"hidden_size": HIDDEN, "vocab_size": VOCAB, "blocks": BLOCKS, "pattern": pattern}}
    config["model"] |= dict(model)
    config |= {"train": {"steps": 1, "global_batch_size": 16, "micro_batch_size": BATCH, **dict(train)}}
    config |= {"optimizer": {"lr": 1e-3, **dict(optimizer)}}
    config |= {"data": {"train": "none", "seq_len": SEQ_LEN, "tokenizer": "byte"}, "parallel": parallel}
    config |= {"precision": {"format": precision}}
    return plan(resolve(build(config, RunConfig)), gpus, dry_run=True, gpus_per_node=gpus_per_node)


RESIDUAL = SEQ_LEN * BATCH * HIDDEN * WIDTH  # bytes of a layer's input


def test_tensor_parallel_layers_reduce_once_each_way():
    (stage,) = planned("3*mlp", 2, tensor=2).stages
    scalars = 3 * SEQ_LEN * BATCH * WIDTH  # of the loss: a maximum, a sum, a target
    per_micro_batch = (3 * 2 + 2) * RESIDUAL + scalars  # each layer twice; embedding forward, head backward
    assert stage.sent_bytes_per_step == {"tensor all_reduce": 8 * per_micro_batch}


@pytest.mark.parametrize("sequence", [False, True])
def test_messages_in_pieces_are_as_many_bytes_and_keep_as_much(monkeypatch, sequence):
    monkeypatch.setattr(tensor_overlap, "LEAST_ROWS", 1)
    (whole,), (pieces,) = (
        planned("attn mlp", 2, tensor=2, sequence=sequence, tp_comm_overlap=overlap).stages for overlap in (False, True)
    )
    assert pieces.sent_bytes_per_step == whole.sent_bytes_per_step
    assert pieces.memory.kept_per_micro_batch == whole.memory.kept_per_micro_batch


def test_context_parallel_attention_exchanges_what_it_projects():
    (stage,) = planned("attn mlp", 2, context=2).stages
    per_micro_batch = 2 * (3 + 1) * RESIDUAL // 2 // 2  # queries, keys, values and outputs, forward and back
    assert stage.sent_bytes_per_step["context all_to_all"] == 8 * per_micro_batch
    # Each process holds all parameters: their gradients are reduced over the processes of a sequence, too.
    assert stage.sent_bytes_per_step["data all_reduce"] == 4 * stage.parameters


def test_a_pipeline_sends_residuals_both_ways():
    first, second = planned("2*mlp", 2, pipeline=2).stages
    assert first.sent_bytes_per_step == second.sent_bytes_per_step == {"pipeline send": 8 * RESIDUAL}
    assert first.activation_bytes > second.activation_bytes > 0
    assert first.memory.kept_per_micro_batch["the output"] == RESIDUAL
    assert "the output" not in second.memory.kept_per_micro_batch


# A token's copies go to the experts, results return; weights go alone. Half of it stays with its process.
MESSAGES = {
    "to other experts": ("moe", {"expert": 2}, {"expert all_to_all": 4 * 2 * RESIDUAL // 2 + 2 * 2 * 256 // 2}),
    "at the width of a latent space": (
        "latent",
        {"expert": 2},
        {"expert all_to_all": 4 * 2 * RESIDUAL // 4 // 2 + 2 * 2 * 256 // 2},
    ),
    "as many as experts take": ("tight", {"expert": 2}, {"expert all_to_all": 4 * RESIDUAL // 2 + 2 * 256 // 2}),
    "to other channels": (
        "moe",
        {"expert_tensor": 2},
        {
            "expert tensor all_gather": (2 * 2 * RESIDUAL + 2 * 2 * RESIDUAL + 2 * 2 * 256) // 2,
            "expert tensor reduce_scatter": (2 * 2 * RESIDUAL + 2 * 2 * RESIDUAL + 2 * 2 * 256) // 2,
        },
    ),
    "all to all": (
        "gathered",
        {"expert": 2},
        {
            "experts all_gather": (2 * RESIDUAL + 2 * RESIDUAL + 2 * 4 * 256 + 2 * 4 * 64) // 2,
            "experts reduce_scatter": (2 * RESIDUAL + 2 * RESIDUAL + 2 * 4 * 256) // 2,
        },
    ),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_tokens_travel_to_experts_and_back(what):
    """64 tokens of 256 bytes; a weight has 4."""
    pattern, parallel, expected = MESSAGES[what]
    (stage,) = planned(pattern, 2, **parallel).stages
    sent = {kind: size for kind, size in stage.sent_bytes_per_step.items() if "data" not in kind}
    assert sent == {kind: 4 * size for kind, size in expected.items()}


def test_the_plain_backend_plans_experts_too():
    (stage,) = planned("attn moe", 1, {"backend": "torch"}).stages
    assert stage.sent_bytes_per_step == {}


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_muon_keeps_one_moment_of_a_matrix_and_gathers_its_pieces(number_format):
    (adamw,), (muon,) = (
        planned("attn mlp", 2, (), {"type": kind}, precision=number_format, tensor=2).stages
        for kind in ("adamw", "muon")
    )
    own = (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN) // 2  # elements of matrices in one of two processes
    width = {"fp32": 4, "bf16": 2}[number_format]
    assert adamw.optimizer_bytes - muon.optimizer_bytes == 4 * own
    more = Counter(muon.sent_bytes_per_step) - Counter(adamw.sent_bytes_per_step)
    assert more == {"tensor all_gather": width * own}


def test_copies_reduce_gradients_or_share_the_optimizer():
    (copied,), (shared,) = (planned("mlp", 4, **p).stages for p in ({}, {"distributed_optimizer": True}))
    assert copied.sent_bytes_per_step == {"data all_reduce": 2 * 3 * copied.gradient_bytes // 4}
    quarter = {
        "data reduce_scatter": 3 * copied.gradient_bytes // 4,
        "data all_gather": 3 * copied.parameter_bytes // 4,
    }
    assert shared.sent_bytes_per_step == pytest.approx(quarter, abs=64)
    assert shared.optimizer_bytes == pytest.approx(copied.optimizer_bytes / 4, abs=256)


@pytest.mark.parametrize(
    ("pattern", "gpus", "parallel"),
    [
        ("2*(attn mlp)", 16, {"tensor": 2, "sequence": True, "context": 2, "pipeline": 2, "virtual_pipeline": 2}),
        ("2*(attn moe)", 8, {"expert": 4, "pipeline": 2}),
        ("2*(attn moe)", 8, {"tensor": 2, "sequence": True, "expert": 2, "expert_tensor": 2}),
    ],
)
@pytest.mark.parametrize("model", [{}, {"tie_embeddings": True}, {"mtp": {"pattern": "attn mlp", "depth": 2}}])
def test_the_pieces_of_all_processes_add_up(pattern, gpus, parallel, model):
    made = planned(pattern, gpus, model, **parallel)
    assert made.parameters_over_processes == made.parameters
    assert sum(stage.flops_share for stage in made.stages) == pytest.approx(1)
    assert made.sent_bytes_per_step["pipeline send" if "pipeline" in parallel else "tensor all_gather"] > 0
    assert ("expert all_to_all" in made.sent_bytes_per_step) == ("expert" in parallel)


def test_recomputation_keeps_less():
    kept = {
        how: planned("4*(attn mlp)", 1, recompute=how).stages[0].activation_bytes
        for how in ("none", "selective", "full")
    }
    assert kept["full"] < kept["selective"] < kept["none"]


def test_what_is_counted_as_if_it_were_otherwise_is_said():
    made = planned("2*mlp", 1, precision="fp8", train={"compile": True})
    console = Console(file=io.StringIO(), width=200)
    show_plan(made, console)
    assert "precision.format fp8 is counted as bf16\ntrain.compile is counted as false: " in console.file.getvalue()
    assert planned("2*mlp", 1).remarks == []
    assert [remark.split()[0] for remark in planned("2*mlp", 1, train={"cuda_graphs": True}).remarks] == [
        "train.cuda_graphs"
    ]


def test_pinned_memory_is_that_of_all_micro_batches_in_flight_and_of_a_node(monkeypatch):
    """Two stages on three processes each, of which a node of four has all of the first and one of the second."""
    monkeypatch.setattr("hybridtron.model.activation_offload.SMALLEST", 1)
    made = planned("4*mlp", 6, pipeline=2, cpu_offload_layers=1, train={"global_batch_size": 24}, gpus_per_node=4)
    first, second = (stage.memory.pinned for stage in made.stages)
    assert first == 2 * second > 0
    assert made.pinned_bytes_per_node == 3 * first + second
    console = Console(file=io.StringIO(), width=200)
    show_plan(made, console)
    assert "cpu_offload_layers 1" in console.file.getvalue()
    assert "on a node of 4 processes" in console.file.getvalue()
    assert "others wait in" in console.file.getvalue()
    assert planned("4*mlp", 6, pipeline=2, train={"global_batch_size": 24}).pinned_bytes_per_node == 0


@pytest.mark.parametrize(("size", "gpus"), [("7b", 8), ("1b", 64), ("7b", 1024)])
def test_many_processes_are_planned_in_a_small_one_within_a_minute(size, gpus):
    """A minute of processor time and 8 GiB."""
    command = [sys.executable, "-m", "hybridtron", "plan", str(RUNS / f"hybrid_{size}.yaml")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--gpus", str(gpus), "--dry-run", "--json"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert after.ru_maxrss * 1024 < 8 * 2**30
    made = json.loads(done.stdout)
    assert made["gpus"] == math.prod(made["layout"][key] for key in ("tensor", "context", "pipeline", "data")) == gpus
    assert made["parameters_over_processes"] == made["parameters"] > {"1b": 1.5e9, "7b": 6.5e9}[size]
    assert all(stage["sent_bytes_per_step"] for stage in made["stages"])
