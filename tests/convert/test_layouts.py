"""Checkpoints that real processes saved in any layout convert to the same folder, byte for byte.

One set of eight processes saves all of them; the tests convert what they left.
"""

import hashlib
import json
import sys

import pytest

from hybridtron.config.load import dump
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.exporting import to_hf
from hybridtron.convert.formats.checkpoint import CheckpointSink, CheckpointSource
from hybridtron.convert.formats.safetensors import SafetensorsSink
from hybridtron.convert.formats.source import TensorInfo, copy
from hybridtron.convert.mapping.entry import assemble
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content
from tests.convert.save_layouts import LAYOUTS, PROCESSES, config_of, world_size
from tests.warm import launch

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


@pytest.mark.parametrize(
    ("model", "architecture", "layout"),
    [("dense", "nemotron_h", "tp2 sp pp4"), ("sparse", "hybridtron", "tp2 sp pp2 dp2 ep4")],
)
def test_a_run_of_any_layout_becomes_the_same_folder(model, architecture, layout, saved, tmp_path):
    """With config.json, tokenizer and generation settings; the receipts differ in what they read alone."""
    folders, receipts = [], []
    for each in ("one", layout):
        checkpoint = saved / model / each
        (saved / model / "config.yaml").write_text(dump(config_of(model, each)))
        (checkpoint / STATE_NAME).write_bytes(state_content(TrainState()))
        to_hf(checkpoint, tmp_path / each, shard_bytes=50_000, logits="never")
        receipts.append(json.loads((tmp_path / each / "conversion.json").read_text()))
        folders.append(digests(tmp_path / each))
        del folders[-1]["conversion.json"]
    assert folders[0] == folders[1]
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= folders[0].keys()
    assert sum(name.endswith(".safetensors") for name in folders[0]) > 1
    assert (receipts[0]["architecture"], receipts[0]["equal"]) == (architecture, True)
    different = {key for key, value in receipts[0].items() if receipts[1][key] != value}
    assert {"source", "source_files", "target"} <= different <= {"source", "source_files", "target", "seconds"}


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
