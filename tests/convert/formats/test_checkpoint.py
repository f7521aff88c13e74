"""Checkpoints as source and sink of conversions."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

import hybridtron.convert.formats.checkpoint as module
from hybridtron.checkpoint_reader import read_common
from hybridtron.convert.formats.checkpoint import CheckpointSink, CheckpointSource, divided
from hybridtron.convert.formats.source import TensorInfo, boxes, copy
from hybridtron.distributed.checkpoint import manifest
from hybridtron.errors import DamagedCheckpoint

V1 = Path(__file__).parents[2] / "distributed" / "checkpoint" / "v1.tar.xz"
TENSORS = {
    "matrix": TensorInfo((48, 40), torch.bfloat16),
    "cube": TensorInfo((3, 5, 7), torch.float32),
    "vector": TensorInfo((33,), torch.float32),
    "scalar": TensorInfo((), torch.int64),
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 256 bytes, so that a small tensor has many."""
    monkeypatch.setattr("hybridtron.convert.formats.source.CHUNK_BYTES", 256)


@pytest.fixture
def v1(tmp_path):
    """A checkpoint of before manifests, in chunks of torch's own frames."""
    with tarfile.open(V1) as archive:
        archive.extractall(tmp_path / "v1", filter="data")
    return tmp_path / "v1"


def values():
    torch.manual_seed(0)
    return {name: torch.randn(info.shape).mul(50).to(info.dtype) for name, info in TENSORS.items()}


def write(folder, by=lambda info: [None], **options):
    with CheckpointSink(folder, TENSORS, {"train_state.json": b"{}"}, **options) as sink:
        for name, value in values().items():
            for box in by(TENSORS[name]):
                if box is None:
                    sink.write(name, value)
                else:
                    index = tuple(slice(o, o + s) for o, s in zip(*box, strict=True))
                    sink.write(name, value[index], box.offsets)
    return folder


def test_what_the_sink_writes_is_read_by_torch_and_matches_its_manifest(tmp_path, small_chunks):
    folder = write(tmp_path / "out", updates=7)
    manifest.verify(folder)
    assert read_common(folder) == {"optimizer_updates": 7}
    stored = _load_state_dict_from_keys(storage_reader=FileSystemReader(folder))
    expected = values()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    listed = json.loads((folder / "manifest.json").read_bytes())["files"]
    assert {*listed, "manifest.json"} == {path.name for path in folder.iterdir()}
    assert len(listed["__0_0.distcp"]["tensors"]) > 20


def test_boxes_of_any_cut_and_order_give_the_same_bytes(tmp_path, small_chunks, monkeypatch):
    whole = write(tmp_path / "whole")

    def columns(info):
        half = info.shape[-1] // 2 if info.shape else 0
        first = module.Box
        if not half:
            return [None]
        rest = info.shape[:-1]
        zeros = (0,) * len(rest)
        return [first((*zeros, half), (*rest, info.shape[-1] - half)), first((*zeros, 0), (*rest, half))]

    cut = write(tmp_path / "cut", columns)
    small = write(tmp_path / "small", lambda info: reversed(list(boxes(info))))
    for name in ("__0_0.distcp", "manifest.json", ".metadata", "common.pt"):
        assert (cut / name).read_bytes() == (small / name).read_bytes() == (whole / name).read_bytes()


def test_only_the_box_is_read(tmp_path, small_chunks, monkeypatch):
    source = CheckpointSource(write(tmp_path / "out", files=divided(TENSORS, 3)))
    assert source.files == ["__0_0.distcp", "__1_0.distcp", "__2_0.distcp"]
    read = []
    original = module.read_runs

    def counting(descriptor, start, runs, width, memory):
        runs = list(runs)
        read.append(sum(length for _, _, length in runs) * width)
        original(descriptor, start, runs, width, memory)

    monkeypatch.setattr(module, "read_runs", counting)
    for name, value in values().items():
        assert torch.equal(source.read(name), value)
    read.clear()
    assert torch.equal(source.read("matrix", (5, 11), (20, 13)), values()["matrix"][5:25, 11:24])
    assert sum(read) == 20 * 13 * 2
    assert torch.equal(source.read("cube", (1, 2, 3), (2, 3, 4)), values()["cube"][1:, 2:, 3:])


def test_parameters_alone_unless_asked_for_more(v1):
    stored = _load_state_dict_from_keys(storage_reader=FileSystemReader(v1))
    parameters, everything = CheckpointSource(v1), CheckpointSource(v1, optimizer=True)
    assert everything.tensors.keys() == stored.keys()
    assert parameters.tensors.keys() == {key for key in stored if not key.startswith("optimizer.")}
    for key, value in stored.items():
        assert torch.equal(everything.read(key), value)
    part = everything.read("embedding.weight", (100, 2), (7, 3))
    assert torch.equal(part, stored["embedding.weight"][100:107, 2:5])
    assert everything.updates == 2


def test_a_copy_is_streamed(v1, tmp_path, small_chunks):
    source = CheckpointSource(v1, optimizer=True)
    done = []
    with CheckpointSink(tmp_path / "new", source.tensors, progress=done.append) as sink:
        for name in source.tensors:
            copy(source, sink, name)
    copied = CheckpointSource(tmp_path / "new", optimizer=True)
    assert all(torch.equal(copied.read(name), source.read(name)) for name in source.tensors)
    assert done == sorted(done)
    assert done[-1] == sum(info.size_bytes for info in source.tensors.values())


def test_damage_is_found(tmp_path):
    folder = write(tmp_path / "out")
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[2000] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)
    for box in ((), ((10, 0), (5, 40))):
        with pytest.raises(DamagedCheckpoint, match=r"tensor matrix at \[0, 0\] does not match its checksum"):
            CheckpointSource(folder).read("matrix", *box)
    assert torch.equal(CheckpointSource(folder).read("vector"), values()["vector"])
    source = CheckpointSource(folder, "none")
    (folder / "common.pt").write_bytes(bytes((folder / "common.pt").stat().st_size))
    with pytest.raises(DamagedCheckpoint, match=r"common\.pt"):
        CheckpointSource(folder)
    (folder / "__0_0.distcp").write_bytes(content[:3000])
    with pytest.raises(DamagedCheckpoint, match=r"__0_0\.distcp: damaged"):
        source.read("matrix")


@pytest.mark.parametrize(
    ("name", "tensor", "offsets"),
    [
        ("vector", torch.zeros(32), None),
        ("vector", torch.zeros(33, dtype=torch.bfloat16), None),
        ("vector", torch.zeros(2), (32,)),
        ("cube", torch.zeros(5, 7), None),
    ],
)
def test_what_was_not_announced_is_refused_and_leaves_nothing(name, tensor, offsets, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: .* is no box of"), CheckpointSink(tmp_path / "out", TENSORS) as sink:
        sink.write(name, tensor, offsets)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_missing_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="cube: 420 of its 420 bytes were not written"):  # noqa: SIM117
        with CheckpointSink(tmp_path / "out", TENSORS) as sink:
            sink.write("matrix", values()["matrix"])
    assert list(tmp_path.iterdir()) == []
