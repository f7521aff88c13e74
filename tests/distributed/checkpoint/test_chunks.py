"""What each process writes and reads, and checkpoints of before."""

import errno
import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from hybridtron.config.load import build
from hybridtron.distributed import checkpoint
from hybridtron.distributed.checkpoint import writing
from hybridtron.distributed.checkpoint.chunks import held_chunks
from hybridtron.distributed.checkpoint.writing import CheckpointWriter
from hybridtron.distributed.process_groups import groups
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import DamagedCheckpoint, UserError
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve

# The run that wrote v1.tar.xz after two steps, with the distributed optimizer of two processes, through megatron-core's
# dist_checkpointing, which gathered the optimizer's state; and its losses in the two steps after.
V1: dict = {
    "name": "v1",
    "seed": 5,
    "model": {
        "hidden_size": 8,
        "vocab_size": 259,
        "pattern": "mamba mlp attn",
        "blocks": {
            "mamba": {"type": "mamba2", "head_dim": 4, "state_dim": 4, "num_groups": 2, "chunk_size": 8},
            "attn": {"type": "attention", "num_heads": 2},
            "mlp": {"type": "swiglu", "ffn_hidden_size": 16},
        },
    },
    "data": {"train": "none", "seq_len": 16, "tokenizer": "byte"},
    "train": {"steps": 4, "global_batch_size": 2},
    "optimizer": {"lr": 1e-2},
    "precision": {"format": "bf16"},
}
LOSSES = [5.568588733673096, 5.571937561035156]


@pytest.fixture
def v1(tmp_path):
    """A checkpoint of before manifests."""
    with tarfile.open(Path(__file__).parent / "v1.tar.xz") as archive:
        archive.extractall(tmp_path / "v1", filter="data")
    return tmp_path / "v1"


@pytest.fixture(scope="module")
def engine():
    config = resolve(build(V1, RunConfig))
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        yield build_engine(config, parallel_context)[0]


def values(engine):
    return {(chunk.key, chunk.offsets): chunk.data.clone() for chunk in held_chunks(engine)}


def losses(engine):
    found = []
    for step in (2, 3):
        text = torch.randint(250, (2, 17), generator=torch.Generator().manual_seed(step))
        batches = [(row[:, :-1], row[:, 1:]) for row in text.split(1)]
        found.append(engine.train_step(batches, lr=1e-2).loss)
    return found


def test_a_checkpoint_of_before_is_loaded_saved_and_trains_on(v1, engine, tmp_path):
    checkpoint.load(v1, engine)
    expected = values(engine)
    stored = _load_state_dict_from_keys(storage_reader=FileSystemReader(v1))
    # It has A_log, D and dt_bias in bf16, and in fp32 only as the optimizer's.
    float32 = {name for name, spec in engine.specs.items() if spec.float32}
    assert len(float32) == 3
    read_from = {key: f"optimizer.param.{key}" if key in float32 else key for key, _ in expected}
    assert {*read_from.values(), *float32} == stored.keys()
    assert all(torch.equal(value, stored[read_from[key]]) for (key, _), value in expected.items())
    (tmp_path / "v2").mkdir()
    checkpoint.save(tmp_path / "v2", engine)
    after = losses(engine)
    assert after == pytest.approx(LOSSES, abs=2e-3)  # bf16, on whatever processor
    for folder in (tmp_path / "v2", v1):
        checkpoint.load(folder, engine)
        found = values(engine)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert losses(engine) == after


def test_a_checkpoint_is_read_by_torch_alone(engine, tmp_path):
    """As docs/checkpoints.md shows."""
    (tmp_path / "v2").mkdir()
    checkpoint.save(tmp_path / "v2", engine)
    dcp_to_torch_save(tmp_path / "v2", tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt")
    expected = values(engine)
    assert {key for key, _ in expected} == whole.keys()
    assert all(torch.equal(value, whole[key]) for (key, _), value in expected.items())


def test_a_file_is_what_torch_save_writes(tmp_path, engine):
    checkpoint.save(tmp_path, engine)
    content = (tmp_path / "__0_0.distcp").read_bytes()
    writer = CheckpointWriter(engine)
    writer.prepare()
    torch.serialization.set_crc32_options(False)
    try:
        for slot in writer.slots:
            saved = io.BytesIO()
            torch.save(slot.chunk.data.clone(memory_format=torch.contiguous_format), saved)
            assert content[slot.start : slot.start + slot.frame.length] == saved.getvalue()
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(writer.slots) > 50


def test_no_process_waits_for_one_that_cannot_plan(engine, monkeypatch):
    """Whatever its error is; the others find it before they give their plans to the first."""

    def gather_object(*arguments):
        raise AssertionError("it would wait here")

    monkeypatch.setattr(writing.dist, "gather_object", gather_object)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "owned_chunks", lambda engine: [].index(0))
        with pytest.raises(RuntimeError, match="0 is not in list"):
            CheckpointWriter(engine).prepare()
    monkeypatch.setattr(groups, "gather", lambda mine: [mine, (RuntimeError, ("wrong",))])
    with pytest.raises(RuntimeError, match="wrong"):
        CheckpointWriter(engine).prepare()


READ_ERROR = OSError(errno.ESTALE, os.strerror(errno.ESTALE), "file")
DAMAGE = DamagedCheckpoint("file: damaged: is cut")


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ((None, DAMAGE, None), DamagedCheckpoint),
        ((DAMAGE, READ_ERROR, None), OSError),
        ((READ_ERROR, DAMAGE, DAMAGE), OSError),
        ((DAMAGE, UserError("damaged_run: other model")), UserError),
        ((MemoryError(), None), RuntimeError),
    ],
)
def test_all_processes_agree_whether_a_checkpoint_is_damaged(errors, kind, monkeypatch):
    found = []
    for own in errors:
        monkeypatch.setattr(groups, "gather", lambda mine: [groups._kind_of(error) for error in errors])
        with pytest.raises(kind) as raised:
            groups.call_everywhere(lambda own=own: raising(own))
        found.append((type(raised.value), str(raised.value)))
    assert len(set(found)) == 1
    assert issubclass(found[0][0], DamagedCheckpoint) == (kind is DamagedCheckpoint)


def raising(error):
    if error:
        raise error


def test_another_model_is_refused(engine, v1):
    config = resolve(build({**V1, "model": {**V1["model"], "hidden_size": 16}}, RunConfig))
    other, _ = build_engine(config, engine.parallel_context)
    with pytest.raises(UserError, match=r"tensor embedding\.weight is 259 x 8 there; expected 259 x 16, as its config"):
        checkpoint.load(v1, other)
    config = resolve(build({**V1, "precision": {"format": "fp32"}}, RunConfig))
    checkpoint.load(v1, build_engine(config, engine.parallel_context)[0])  # which needs fewer tensors
