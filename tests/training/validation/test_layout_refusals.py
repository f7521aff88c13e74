"""Layouts that cannot be are refused in one line, before a process starts or a process group is made."""

import pytest
import torch.distributed as dist

from hybridtron.cli.main import main

MOE = "{type: moe, num_experts: 6, top_k: 2, ffn_hidden_size: 16}"
WITH_EXPERTS = [f"model.blocks.ffn={MOE}"]

# What is asked for, with how many processes, and what the line must name.
IMPOSSIBLE = {
    "heads over too many": (["parallel.tensor=8"], 8, ["parallel.tensor = 8", "possible: 1, 2"]),
    "an odd number": (["parallel.tensor=3"], 3, ["parallel.tensor = 3", "possible: 1, 2)"]),
    "a vocabulary that does not divide": (
        ["parallel.tensor=2", "model.vocab_size=257"], 2, ["257", "parallel.tensor = 2"]),
    "sequence alone": (["parallel.sequence=true"], 2, ["parallel.sequence = true", "tensor of 2 or more"]),
    "gathers that overlap without shards": (
        ["parallel.overlap_param_gather=true", "parallel.overlap_grad_reduce=true"], 2,
        ["parallel.overlap_param_gather = true", "distributed_optimizer true beside it, or false"]),
    "gathers that overlap without buckets": (
        ["parallel.overlap_param_gather=true", "parallel.distributed_optimizer=true"], 2,
        ["parallel.overlap_param_gather = true", "overlap_grad_reduce true beside it, or false"]),
    "messages that overlap with nobody": (
        ["parallel.tp_comm_overlap=true"], 2,
        ["parallel.tp_comm_overlap = true", "tensor of 2 or more beside it, or false"]),
    "messages that overlap with Transformer Engine": (
        ["parallel.tensor=2", "parallel.tp_comm_overlap=true", "model.backend=transformer_engine"], 2,
        ["parallel.tp_comm_overlap = true", "model.backend auto or megatron"]),
    "messages that overlap with FP8": (
        ["parallel.tensor=2", "parallel.tp_comm_overlap=true", "precision.format=fp8"], 2,
        ["parallel.tp_comm_overlap = true", "precision.format bf16, or tp_comm_overlap false"]),
    "runs of unequal length": (["parallel.context=3"], 3, ["data.seq_len = 32", "context = 3", "nearest: 30 or 33"]),
    "heads over tensor and context": (
        ["parallel.tensor=2", "parallel.context=2"], 4, ["tensor x context = 4", "possible: 1, 2"]),
    "more stages than layers": (["parallel.pipeline=5"], 5, ["parallel.pipeline = 5", "at most 4"]),
    "more interleaved stages than layers": (
        ["parallel.pipeline=2", "parallel.virtual_pipeline=3"], 2, ["parallel.pipeline = 2", "at most 4"]),
    "other stages than are written": (
        ["parallel.pipeline=2", "model.pattern=mamba | mlp | attn ffn"], 2, ["parallel.pipeline = 2", "3 stages", "|"]),
    "interleaving without a pipeline": (["parallel.virtual_pipeline=2"], 2, ["parallel.virtual_pipeline = 2"]),
    "micro-batches that do not interleave": (
        ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.micro_batch_size=4"], 2,
        ["virtual_pipeline = 2", "1 micro-batches", "multiple of parallel.pipeline 2",
         "(train.global_batch_size, nearest: 8), or 1"]),
    "experts where there are none": (["parallel.expert=2"], 2, ["parallel.expert = 2", "no layer has experts"]),
    "experts that do not divide": (
        [*WITH_EXPERTS, "parallel.expert=4"], 4, ["parallel.expert = 4", "6 experts", "possible: 1, 2, 3, 6"]),
    "experts on too few processes": (
        [*WITH_EXPERTS, "parallel.expert=3", "train.global_batch_size=4"], 2, ["parallel.expert = 3", "2", "possible"]),
    "experts' channels that do not divide": (
        [*WITH_EXPERTS, "parallel.expert_tensor=3", "train.micro_batch_size=1", "train.global_batch_size=6"], 3,
        ["parallel.expert_tensor = 3", "16"]),
    "experts under tensor without sequence": (
        [*WITH_EXPERTS, "parallel.tensor=2"], 2, ["parallel.sequence", "true"]),
    "processes for no whole copy": (
        ["parallel.tensor=2", "parallel.pipeline=2"], 6, ["= 6: expected", "tensor 2 x pipeline 2 = 4", "4 or 8"]),
    "another number of copies": (["parallel.data=4"], 2, ["parallel.data = 4", "expected 2"]),
    "a batch for other copies": (["train.micro_batch_size=1"], 3, ["train.global_batch_size = 4", "3"]),
    "a micro-batch that fills the batch": (
        ["train.micro_batch_size=4"], 2, ["train.global_batch_size = 4", "nearest: 8, or micro_batch_size 2"]),
    "recomputing an unknown block": (
        ["parallel.recompute={att: full}"], 1, ["parallel.recompute.att", "nearest: attn"]),
    "more layers in CPU memory than there are": (
        ["parallel.cpu_offload_layers=5"], 1, ["parallel.cpu_offload_layers = 5", "at most 4"]),
    "layers in CPU memory beside CUDA graphs": (
        ["parallel.cpu_offload_layers=1", "train.cuda_graphs=true"], 1,
        ["parallel.cpu_offload_layers = 1: expected 0, or train.cuda_graphs false"]),
    "the torch backend over processes": (
        ["parallel.tensor=2", "model.backend=torch"], 2, ["model.backend", "megatron"]),
    "no such number": (["parallel.context=0"], 1, ["parallel.context", "0", "at least 1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_layout_is_one_clear_line(name, tiny, capsys):
    overrides, processes, named = IMPOSSIBLE[name]
    assert main(["train", str(tiny), *overrides, "--nproc", str(processes)]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("hybridtron: error: ")
    assert all(word in line for word in named), line
    assert not dist.is_initialized()
    assert not (tiny.parent / "run").exists()


@pytest.mark.parametrize("name", [n for n, (_, processes, _) in IMPOSSIBLE.items() if processes > 1])
def test_a_plan_refuses_what_training_refuses(name, tiny, capsys):
    overrides, processes, _ = IMPOSSIBLE[name]
    assert main(["plan", str(tiny), *overrides, "--gpus", str(processes)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--nproc" not in line


def test_printing_a_config_for_so_many_processes_refuses_too(tiny, capsys):
    assert main(["train", str(tiny), "parallel.tensor=2", "--nproc", "3", "--print"]) == 2
    assert "--nproc = 3" in capsys.readouterr().err
