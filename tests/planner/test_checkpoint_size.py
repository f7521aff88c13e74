"""Sizes of checkpoints in plans, against checkpoints on disk."""

import math
from collections import Counter

import pytest
from torch.distributed.checkpoint.metadata import MetadataIndex

from hybridtron.api.study import plan
from hybridtron.planner.checkpoint_size import SMALL_FILES
from hybridtron.safe_index import read_safe_index
from tests.conftest import TINY

MOE = {"type": "moe", "num_experts": 4, "top_k": 2, "ffn_hidden_size": 16, "balance": "bias"}
RUN_7B = "configs/runs/hybrid_7b.yaml"


def written_bytes(index):
    """Bytes of tensors in each file."""
    written = Counter()
    for key, entry in index.state_dict_metadata.items():
        for chunk in entry.chunks:
            file = index.storage_data[MetadataIndex(key, chunk.offsets)].relative_path
            written[file] += math.prod(chunk.sizes) * entry.properties.dtype.itemsize
    return written


def planned(gpus=1, model=(), disk_gb_per_s=None, **sections):
    config = {**TINY, "model": TINY["model"] | dict(model), "data": {**TINY["data"], "train": "none"}, **sections}
    return plan(config, gpus=gpus, disk_gb_per_s=disk_gb_per_s).checkpoint


def test_a_checkpoint_on_disk_has_the_planned_bytes(hybridtron, tiny, tmp_path):
    overrides = ["train.steps=1", "schedule.warmup_steps=0", "precision.format=bf16", "model.tie_embeddings=true"]
    hybridtron("train", tiny, *overrides, "parallel.distributed_optimizer=true", "--nproc", 2).check_returncode()
    (folder,) = (tmp_path / "run").glob("step_*")
    index = read_safe_index(folder)
    stored = sum(
        math.prod(entry.size) * entry.properties.dtype.itemsize for entry in index.state_dict_metadata.values()
    )
    made = plan(tiny, *overrides, "parallel.distributed_optimizer=true", gpus=2).checkpoint
    assert made.total_bytes == stored
    names = {file.name for file in folder.iterdir()}
    assert names == {"__0_0.distcp", "__1_0.distcp", *SMALL_FILES}
    assert made.files == 2
    written = written_bytes(index)
    assert sum(written.values()) == stored
    assert max(written.values()) == pytest.approx(made.largest_bytes_per_process, rel=0.02)  # buckets are padded
    assert made.weights_bytes + made.optimizer_bytes == made.total_bytes


def test_equal_processes_write_equally_much():
    alone, both = planned(1), planned(2)
    assert alone.largest_bytes_per_process == alone.mean_bytes_per_process == alone.total_bytes
    assert both.largest_bytes_per_process == both.mean_bytes_per_process == alone.total_bytes // 2
    assert (both.files, both.total_bytes) == (2, alone.total_bytes)


def test_first_ranks_write_what_tensor_parallelism_leaves_whole():
    cut = planned(2, parallel={"tensor": 2})
    norms = 5 * 32 * (4 + 8)  # of four layers and the end; the gated norm is cut
    assert cut.largest_bytes_per_process == cut.mean_bytes_per_process + norms // 2


def test_experts_are_shared_by_their_own_replicas():
    model = {"blocks": {"attn": TINY["model"]["blocks"]["attn"], "moe": MOE}, "pattern": "attn moe"}
    cut = planned(4, model, parallel={"expert": 2}, train={**TINY["train"], "global_batch_size": 8})
    assert cut.largest_bytes_per_process == pytest.approx(cut.mean_bytes_per_process, abs=4)


def test_seconds_follow_from_the_rate_of_all_processes():
    made = planned(2, disk_gb_per_s=0.5)
    assert made.seconds == made.total_bytes / 0.5e9
    assert planned(2).seconds is None


def test_a_model_of_7b_on_1024_processes():
    made = plan(RUN_7B, gpus=1024, disk_gb_per_s=20).checkpoint
    parameters = 6_800_947_072
    kept = 8064  # A_log, D and dt_bias, in fp32
    assert made.weights_bytes == 2 * parameters + 2 * kept
    assert made.optimizer_bytes == 12 * parameters - 4 * kept
    assert (made.files, made.small_files) == (1024, 5)
    assert 88e6 < made.mean_bytes_per_process <= made.largest_bytes_per_process < 105e6
    assert made.seconds == pytest.approx(4.76, abs=0.01)
