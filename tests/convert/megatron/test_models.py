"""Models that megatron-core saved, imported and exported again.

One set of processes, of `processes.py`, saves and loads with megatron-core; the tests look at what it left.
"""

import sys

import pytest
import torch

import hybridtron
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.megatron.from_megatron import from_megatron
from hybridtron.convert.megatron.source import MegatronSource
from tests.convert.megatron.cases import CASES, SEQ_LEN, VOCAB
from tests.warm import launch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("megatron")
    assert launch([sys.executable, "-m", "tests.convert.megatron.processes", str(folder)], 2) == 0
    return folder


@pytest.fixture(scope="module")
def logits(saved):
    """Case -> where -> logits of megatron-core's model there."""
    return torch.load(saved / "logits.pt")


@pytest.mark.parametrize("name", CASES)
def test_the_imported_model_gives_the_same_logits(saved, logits, name):
    tokens = torch.randint(VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = hybridtron.load(saved / name / "run").logits(tokens)
    assert logits[name]["tp1"].std() > 0.05
    assert (ours - logits[name]["tp1"]).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
@pytest.mark.parametrize("name", CASES)
def test_every_layout_imports_alike(saved, tmp_path, name, layout):
    from_megatron(saved / name / layout, tmp_path / "run")
    assert_same_tensors(*(CheckpointSource(run / "step_00000000") for run in (saved / name / "run", tmp_path / "run")))


@pytest.mark.parametrize("name", CASES)
def test_megatron_core_loads_what_is_exported(logits, name):
    """In one layout with the very same logits; also into a model whose vocabulary is padded."""
    assert torch.equal(logits[name]["exported in tp1"], logits[name]["tp1"])
    assert torch.equal(logits[name]["exported, padded"][..., :VOCAB], logits[name]["tp1"])
    assert (logits[name]["exported in tp2"] - logits[name]["tp1"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].metadata])
def test_an_export_is_bitwise_the_original(saved, name):
    original, exported = MegatronSource(saved / name / "tp1"), MegatronSource(saved / name / "exported" / "release")
    assert_same_tensors(original, exported)


def test_an_import_from_separate_gates_and_experts_is_bitwise_the_original(saved):
    """They come back joined, as megatron-core stores them by default."""
    original, exported = (MegatronSource(saved / "singletons" / each) for each in ("tp1", "exported/release"))
    name = "mlp.experts.experts{}.linear_fc1.weight"
    for layer in range(2):
        joined = exported.read(f"decoder.layers.{name.format('')}")[layer]
        for expert in range(4):
            theirs = f"decoder.layers.{layer}.{name.format(f'.{expert}')}"
            gate, up = original.read(f"{theirs}_w"), original.read(f"{theirs}_v")
            assert torch.equal(joined[expert], torch.cat([gate, up]))


def assert_same_tensors(one, other):
    assert dict(one.tensors) == dict(other.tensors)
    for key in one.tensors:
        assert torch.equal(one.read(key), other.read(key)), key
