"""Folders of safetensors files: what the library reads and writes, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridtron.convert.formats import output_folder
from hybridtron.convert.formats.safetensors import FILE, INDEX, SafetensorsSink, SafetensorsSource
from hybridtron.convert.formats.safetensors_header import DTYPES
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.errors import DamagedCheckpoint, UserError


def values():
    torch.manual_seed(0)
    floats = {f"layers.{i}.weight": torch.randn(6, 10 + i, dtype=torch.bfloat16) for i in range(3)}
    others = {"norm": torch.randn(7), "scalar": torch.tensor(3), "flags": torch.tensor([True, False, True])}
    return {**floats, **others, "empty": torch.zeros(0, 4), "é": torch.randn(2, 3, 4)}


def infos(tensors):
    return {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in tensors.items()}


def write(folder, tensors=None, **options):
    tensors = tensors or values()
    with SafetensorsSink(folder, infos(tensors), {"config.json": b"{}"}, **options) as sink:
        for name, value in tensors.items():
            sink.write(name, value)
    return folder


@pytest.fixture
def single(tmp_path):
    return write(tmp_path / "single")


@pytest.fixture
def sharded(tmp_path):
    return write(tmp_path / "sharded", shard_bytes=260)


def test_the_file_is_that_of_the_library(single, tmp_path):
    save_file(values(), tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (single / FILE).read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert sorted(path.name for path in single.iterdir()) == ["config.json", FILE]


def test_every_type_goes_there_and_back(tmp_path):
    tensors = {name: torch.arange(8).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "all.safetensors", {"format": "pt"})
    folder = write(tmp_path / "out", tensors)
    assert (folder / FILE).read_bytes() == (tmp_path / "all.safetensors").read_bytes()
    source = SafetensorsSource(tmp_path / "all.safetensors")
    for name, value in tensors.items():
        assert source.read(name).dtype == value.dtype
        assert torch.equal(source.read(name).view(torch.uint8), value.view(torch.uint8))


def test_shards_have_an_index_and_are_read_as_one(sharded):
    source, expected = SafetensorsSource(sharded), values()
    index = json.loads((sharded / INDEX).read_bytes())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    assert len(source.files) == 3
    for file in source.files:
        stored = load_file(sharded / file)
        assert stored.keys() == {name for name, where in index["weight_map"].items() if where == file}
        assert all(torch.equal(value, expected[name]) for name, value in stored.items())
    assert source.tensors == infos(expected)
    assert all(torch.equal(source.read(name), value) for name, value in expected.items())


def test_boxes_are_read_and_written(tmp_path):
    cube = torch.randn(4, 6, 8)
    with SafetensorsSink(tmp_path / "out", {"cube": TensorInfo((4, 6, 8), torch.float32)}) as sink:
        for first in (4, 0):
            sink.write("cube", cube[:, :, first : first + 4], (0, 0, first))
    source = SafetensorsSource(tmp_path / "out")
    assert torch.equal(source.read("cube"), cube)
    assert torch.equal(source.read("cube", (1, 2, 3), (2, 3, 4)), cube[1:3, 2:5, 3:7])
    assert torch.equal(source.read("cube", (1, 0, 0), (2, 6, 8)), cube[1:3])


def header(folder):
    content = (folder / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def replace_header(folder, change):
    entries, rest = header(folder)
    text = change if isinstance(change, bytes) else json.dumps(change(entries)).encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + rest)


def changed(name, **fields):
    return lambda entries: {**entries, name: {**entries[name], **fields}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"[1]", "is no JSON object"),
        (b'{"a"', "its header Expecting"),
        (b"\xff\xfe", "its header "),
        (b'{"a": 1, "a": 2}', "names a twice"),
        (changed("norm", dtype="F4"), "gives norm the dtype 'F4'; expected one of BOOL"),
        (changed("norm", shape=[-7]), r"gives norm the shape \[-7\]"),
        (changed("norm", shape=[True]), r"gives norm the shape \[True\]"),
        (changed("norm", shape=[8]), "gives norm 28 bytes; expected 32 by its shape"),
        (changed("norm", data_offsets=[0, 28]), "places norm at byte 0|overlaps what is before it"),
        (changed("norm", more=1), "has no dtype, shape and data_offsets of norm"),
        (lambda entries: {n: e for n, e in entries.items() if n != "norm"}, "leaves a gap before it"),
        (lambda entries: {n: e for n, e in entries.items() if n != "flags"}, "describes .* bytes; the file has"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(change, message, single):
    replace_header(single, change)
    with pytest.raises(DamagedCheckpoint, match=message):
        SafetensorsSource(single)


def test_a_cut_file_is_refused_at_every_length(single):
    content = (single / FILE).read_bytes()
    for length in (0, 7, 8, 50, len(content) // 2, len(content) - 1):
        (single / FILE).write_bytes(content[:length])
        with pytest.raises(UserError, match=FILE):
            SafetensorsSource(single)
    (single / FILE).write_bytes(content + b"\0")
    with pytest.raises(DamagedCheckpoint, match="the file has"):
        SafetensorsSource(single)


def test_a_file_that_is_cut_while_it_is_read_is_noticed(single):
    source = SafetensorsSource(single)
    cut = (single / FILE).stat().st_size - 3
    os.truncate(single / FILE, cut)
    with pytest.raises(DamagedCheckpoint, match=f"ends at byte {cut}"):
        [source.read(name) for name in source.tensors]


def test_pickles_are_refused(tmp_path):
    torch.save(values(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle of torch\.save, which can run code"):
        SafetensorsSource(tmp_path)
    for new in (True, False):
        torch.save(values(), tmp_path / FILE, _use_new_zipfile_serialization=new)
        with pytest.raises(UserError, match="is a pickle of"):
            SafetensorsSource(tmp_path)


def test_a_wrong_index_is_refused(sharded):
    index = json.loads((sharded / INDEX).read_bytes())
    weight_map = index["weight_map"]
    first = next(iter(weight_map))
    other = next(file for file in weight_map.values() if file != weight_map[first])

    def refused(content, message, kind=UserError):
        (sharded / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(kind, match=message):
            SafetensorsSource(sharded)

    moved = {"weight_map": {**weight_map, first: other}}
    refused(moved, f"{first} is in it|{first} is not in it")
    refused({"weight_map": {n: f for n, f in weight_map.items() if n != first}}, f"{first} is in it")
    refused({"weight_map": {**weight_map, "more": other}}, "more is not in it")
    refused({"weight_map": {**weight_map, "more": "gone.safetensors"}}, "is missing", DamagedCheckpoint)
    refused({"weight_map": {**weight_map, "more": "../x.safetensors"}}, "in its own folder")
    refused({"weight_map": {**weight_map, "more": "x.bin"}}, "expected a safetensors file")
    refused({"weight_map": [1]}, "no mapping", DamagedCheckpoint)
    refused("{", "has no weight_map", DamagedCheckpoint)
    (sharded / INDEX).unlink()
    with pytest.raises(UserError, match=f"has no {FILE} and no {INDEX} that names model-00001-of-"):
        SafetensorsSource(sharded)


def test_one_file_beside_an_index_is_refused(sharded, single):
    shutil.copy(single / FILE, sharded)
    with pytest.raises(UserError, match="has both"):
        SafetensorsSource(sharded)


def test_an_existing_folder_is_refused(single):
    before = (single / FILE).read_bytes()
    with pytest.raises(UserError, match="single: exists: expected the name of a new folder"):
        write(single)
    assert (single / FILE).read_bytes() == before
    with pytest.raises(UserError, match=r"'\.': expected the name of a new folder"):
        write(Path())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_conversion_leaves_nothing(error, tmp_path):
    def convert():
        with SafetensorsSink(tmp_path / "deep" / "out", infos(values())) as sink:
            sink.write("norm", values()["norm"])
            assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.partial"]
            raise error

    with pytest.raises(error):
        convert()
    assert list((tmp_path / "deep").iterdir()) == []


SIGNALLED = """
import sys, time
from pathlib import Path
from hybridtron.convert.formats.output_folder import output_folder
with output_folder(Path(sys.argv[1])) as draft:
    (draft / "model.safetensors").write_bytes(b"x")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_that_looks_whole(number, tmp_path):
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(UserError, match="another process writes into it"):
            write(tmp_path / "out")
        process.send_signal(number)
        assert process.wait(240)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if number == signal.SIGTERM else ["out.partial"])
    write(tmp_path / "out")  # over what the killed one left
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage)
    large = {"weight": TensorInfo((1024, 1024), torch.float32)}
    with pytest.raises(UserError, match=r"out: needs 5\.00 MiB of disk; 3\.00 MiB are free"):
        SafetensorsSink(tmp_path / "out", large).__enter__()
    assert list(tmp_path.iterdir()) == []
