"""Checkpoints that real processes saved in any layout convert to the same folder, byte for byte.

One set of eight processes saves all of them; the tests convert what they left.
"""

import hashlib
import sys

import pytest

from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.architectures.parts import stored_shapes
from hybridtron.convert.formats.checkpoint import CheckpointSink, CheckpointSource
from hybridtron.convert.formats.safetensors import SafetensorsSink
from hybridtron.convert.formats.source import TensorInfo, copy
from hybridtron.convert.mapping import assemble
from hybridtron.distributed.launch import launch
from tests.convert.save_layouts import LAYOUTS, PROCESSES, config_of, world_size

CASES = [(model, layout) for model, layouts in LAYOUTS.items() for layout in layouts if layout != "one"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder with MODEL/LAYOUT of all checkpoints."""
    folder = tmp_path_factory.mktemp("layouts")
    assert launch([sys.executable, "-m", "tests.convert.save_layouts", str(folder)], PROCESSES) == 0
    return folder


def to_hugging_face(checkpoint, out, model):
    """Native, where the model has experts by the names of its parts."""
    source, config = CheckpointSource(checkpoint), config_of(model, "one").model
    architecture, shapes = ARCHITECTURES["nemotron_h"], stored_shapes(config)
    if model == "sparse":
        with SafetensorsSink(out, {name: source.tensors[name] for name in shapes}, shard_bytes=50_000) as sink:
            for name in shapes:
                copy(source, sink, name)
        return out
    table = architecture.table(config)
    tensors = {
        entry.name: TensorInfo(entry.shape_there(shapes), source.tensors[entry.parts[0]].dtype) for entry in table
    }
    with SafetensorsSink(out, tensors, shard_bytes=50_000) as sink:
        for entry in table:
            sink.write(
                entry.name, assemble(entry, [source.read(part, *entry.box(shapes[part])) for part in entry.parts])
            )
    return out


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_converts_to_the_same_folder(model, layout, saved, tmp_path):
    checkpoint = saved / model / layout
    source = CheckpointSource(checkpoint, optimizer=True)
    assert len(source.files) == world_size(config_of(model, layout))  # each process wrote its own
    expected = digests(to_hugging_face(saved / model / "one", tmp_path / "one", model))
    assert len(expected) > 3
    assert digests(to_hugging_face(checkpoint, tmp_path / "out", model)) == expected


@pytest.mark.parametrize("model", LAYOUTS)
def test_optimizer_state_of_every_layout_is_resharded_to_the_same_files(model, saved, tmp_path):
    found = set()
    for layout in LAYOUTS[model]:
        source = CheckpointSource(saved / model / layout, optimizer=True)
        tensors = {name: source.tensors[name] for name in sorted(source.tensors)}
        assert any(name.startswith("optimizer.exp_avg.") for name in tensors)
        with CheckpointSink(tmp_path / layout, tensors, updates=source.updates) as sink:
            for name in tensors:
                copy(source, sink, name)
        found.add(frozenset(digests(tmp_path / layout).items()))
    assert len(found) == 1
