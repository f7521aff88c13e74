"""The verbs on checkpoints: inspect, verify, reshard, average, upcycle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hybridtron as ht
from hybridtron.cli import convert
from hybridtron.config.load import build
from hybridtron.convert.as_stored import as_stored
from hybridtron.convert.checkpoints.average import average, shares_of
from hybridtron.convert.checkpoints.inspect import inspect
from hybridtron.convert.checkpoints.reshard import reshard
from hybridtron.convert.checkpoints.upcycle import upcycle
from hybridtron.convert.checkpoints.verify import verify
from hybridtron.convert.exporting import to_hf
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.safetensors import SafetensorsSink, SafetensorsSource
from hybridtron.convert.formats.source import TensorInfo, copy
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.new_run import new_run
from hybridtron.convert.transformers_model import load_transformers_model
from hybridtron.convert.vocabulary import ResizedVocabulary
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_config
from hybridtron.training.run_folder.train_state import TrainState, read_state
from hybridtron.training.validation.resolve import resolve
from tests.conftest import TINY

TOKENS = torch.randint(250, (2, 24), generator=torch.Generator().manual_seed(1))
DATA = {"train": "none", "seq_len": 32, "tokenizer": "byte"}


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    """The config file of a run of four steps that keeps every second one."""
    folder = tmp_path_factory.mktemp("verbs")
    data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    train = {**TINY["train"], "steps": 4}
    sections = {"folder": str(folder / "run"), "data": data, "train": train}
    saving = {"checkpoint": {"save_every": 2, "keep_last": 0}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **sections, **saving}, sort_keys=False))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def run(config):
    """A run of four steps with checkpoints at 2 and 4."""
    return ht.train(config).folder


def parameters(path, optimizer=False):
    source = CheckpointSource(path, optimizer=optimizer)
    return {name: source.read(name) for name in source.tensors}


def test_inspect_shows_what_a_checkpoint_holds(run, capsys):
    found = inspect(run)
    source = CheckpointSource(run / "step_00000004", optimizer=True)
    assert found.step == found.updates == 4
    assert found.tensors == source.tensors
    assert found.parameters == sum(parameter.numel() for parameter in ht.load(run).parameters())
    assert "with optimizer state" in str(found)
    assert "embedding.weight" in str(found)
    assert convert.main(["inspect", str(run / "step_00000002"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["step"] == 2
    assert printed["optimizer"] is True
    assert printed["files"] == ["__0_0.distcp"]
    assert printed["tensors"]["final_norm.weight"] == {"shape": [32], "dtype": "float32", "bytes": 128}


def test_verify_names_what_differs(run, capsys):
    assert verify(run, run / "step_00000004").same
    result = verify(run / "step_00000002", run)
    before, after = parameters(run / "step_00000002"), parameters(run / "step_00000004")
    assert {each.tensor for each in result.differences} == {
        name for name in before if not torch.equal(before[name], after[name])
    }
    assert result.largest == max((before[name].double() - after[name].double()).abs().max() for name in before)
    a, b = (ht.load(run / step).logits(TOKENS) for step in ("step_00000002", "step_00000004"))
    assert result.logits == pytest.approx((a - b).abs().max().item(), rel=1)
    assert not result.same
    assert convert.main(["verify", str(run), str(run / "step_00000002"), "--no-logits", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["largest_difference"] == result.largest
    assert printed["logits_difference"] is None
    assert convert.main(["verify", str(run), str(run)]) == 0
    assert "same model" in capsys.readouterr().out
    assert convert.main(["verify", str(run), str(run), "--no-logits"]) == 0
    assert capsys.readouterr().out.endswith("same tensors; logits not compared\n")


def test_verify_knows_our_class_of_transformers_in_a_new_process(run, tmp_path):
    """Where nothing else has registered it."""
    to_hf(run, tmp_path / "out", architecture="hybridtron", logits="never")
    code = """
import sys
from pathlib import Path
from hybridtron.convert.checkpoints.verify import verify
print(verify(*map(Path, sys.argv[1:])))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("same model\n")
    assert "falling back" not in ended.stderr


def test_verify_names_tensors_that_one_lacks_or_has_in_another_form(run, tmp_path):
    source = CheckpointSource(run / "step_00000004")
    tensors = {name: TensorInfo(info.shape, torch.bfloat16) for name, info in source.tensors.items()}
    del tensors["final_norm.weight"]
    with SafetensorsSink(tmp_path / "bf16", {**tensors, "more": TensorInfo((2,), torch.float32)}) as sink:
        sink.write("more", torch.zeros(2))
        for name in tensors:
            sink.write(name, source.read(name).bfloat16())
    result = verify(run, tmp_path / "bf16", logits=False)
    reasons = {each.tensor: each.reason for each in result.differences}
    assert reasons.keys() == source.tensors.keys() | {"more"}
    assert reasons["more"] == f"is not in {run}"
    assert reasons["final_norm.weight"] == f"is not in {tmp_path / 'bf16'}"
    assert reasons["embedding.weight"] == f"is float32, and bfloat16 in {tmp_path / 'bf16'}"
    values = [source.read(name) for name in tensors]
    assert result.largest == max((value.double() - value.bfloat16().double()).abs().max() for value in values) > 0


def test_verify_prints_strict_json_where_a_tensor_has_no_numbers(tmp_path, capsys):
    for name, value in (("one", 1.0), ("other", torch.nan)):
        with SafetensorsSink(tmp_path / name, {"w": TensorInfo((2,), torch.float32)}) as sink:
            sink.write("w", torch.full((2,), value))
    assert convert.main(["verify", str(tmp_path / "one"), str(tmp_path / "other"), "--no-logits", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["largest_difference"] is None
    assert printed["differences"] == [{"tensor": "w", "reason": "differs", "largest": None}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of Hugging Face with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama") / "theirs"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 260}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(folder)
    return folder


def imported(llama, out, model):
    """A run of the tensors of a Llama, seen as stored parts."""
    source = as_stored(llama, SafetensorsSource(llama))
    config = build({**TINY, "model": model, "data": DATA}, RunConfig)
    with new_run(out, config, TrainState(), source.tensors, run=llama) as sink:
        for name in source.tensors:
            copy(source, sink, name)
    return out


def test_verify_compares_a_run_with_a_native_folder(llama, tmp_path):
    blocks = {
        "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 48},
    }
    model = {"hidden_size": 32, "vocab_size": 260, "pattern": "2*(attn mlp)", "blocks": blocks, "norm_eps": 1e-6}
    result = verify(imported(llama, tmp_path / "ours", model), llama)
    assert result.same
    assert result.equal_tensors == len(SafetensorsSource(llama).tensors)
    assert result.logits < 1e-5
    blocks["attn"]["rotary_base"] = 500.0  # equal weights, other logits
    result = verify(imported(llama, tmp_path / "other", model), llama)
    assert not result.differences
    assert result.logits > 1e-3
    assert not result.same


def test_a_folder_whose_tensors_have_other_shapes_than_its_config_says_is_no_model(llama, tmp_path):
    """Its bytes are those of the model, but transformers cannot load it."""
    folder = tmp_path / "bent"
    shutil.copytree(llama, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].reshape(48, 32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"bent: tensors are 1 of another shape: {name} \[48, 32\] \(expected"):
        verify(llama, folder)
    with pytest.raises(UserError, match="bent: transformers cannot build it"):
        load_transformers_model(folder)


@pytest.mark.parametrize("layout", [{"files": 3}, {"tensor": 2, "pipeline": 2}, {}])
def test_a_resharded_run_has_every_tensor_in_other_files(layout, run, tmp_path):
    reshard(run, tmp_path / "new", **layout)
    checkpoint = tmp_path / "new" / "step_00000004"
    source = CheckpointSource(checkpoint, optimizer=True)
    expected = parameters(run / "step_00000004", optimizer=True)
    assert source.tensors.keys() == expected.keys()
    assert all(torch.equal(source.read(name), value) for name, value in expected.items())
    assert len(source.files) == (layout.get("files") or layout.get("tensor", 1) * layout.get("pipeline", 1))
    assert source.updates == 4
    assert read_state(checkpoint) == read_state(run / "step_00000004")
    assert torch.equal(ht.load(tmp_path / "new").logits(TOKENS), ht.load(run).logits(TOKENS))
    if "tensor" in layout:  # a column of the projection, and the layers of a stage, each in its process's file
        heads = {place.relative_path for _, place in source.chunks["layers.0.mixer.out_proj.weight"]}
        assert heads == {"__0_0.distcp", "__1_0.distcp"}
        assert {place.relative_path for _, place in source.chunks["layers.3.norm.weight"]} == {"__2_0.distcp"}


def test_a_resharded_run_resumes_bitwise(config, run, tmp_path):
    reshard(run / "step_00000002", tmp_path / "new", files=2)
    resumed = ht.train(config, f"folder={tmp_path / 'new'}", resume=True)
    expected = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][2:]
    assert [row["loss"] for row in resumed.metrics] == [row["loss"] for row in expected]
    end, before = (parameters(path / "step_00000004", True) for path in (tmp_path / "new", run))
    assert all(torch.equal(end[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor": 3}, "tensor = 3: does not divide"),
        ({"pipeline": 5}, "pipeline = 5: expected at most 4"),
        ({"files": 0}, "files = 0: expected 1 or more"),
        ({"files": 2, "tensor": 2}, "without tensor and pipeline"),
        ({"tensor": 0}, "tensor = 0: expected a whole number, 1 or more"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        reshard(run, tmp_path / "new", **layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensor", [1, 2])
def test_keys_that_another_layout_does_not_have_are_left_out(tensor, tmp_path):
    """A run that had them is resharded as any other."""
    model = {"blocks": {"attn": {"type": "attention", "num_heads": 4}}, "pattern": "attn"}
    runs = {
        "overlapped": {"parallel": {"tensor": 2, "tp_comm_overlap": True}},
        "recorded": {"train": TINY["train"] | {"cuda_graphs": True}},
    }
    for name, keys in runs.items():
        reshard(untrained(tmp_path / name, model, **keys), tmp_path / f"new {name}", tensor=tensor)
    assert read_config(tmp_path / "new overlapped").parallel.tp_comm_overlap is (tensor == 2)
    assert read_config(tmp_path / "new recorded").train.cuda_graphs is (tensor == 1)


def test_an_average_is_that_of_its_checkpoints(run, tmp_path):
    first, last = (parameters(run / step) for step in ("step_00000002", "step_00000004"))
    average([run], tmp_path / "equal")
    average([run / "step_00000002", run / "step_00000004"], tmp_path / "weighted", weights=[1, 3])
    average([run], tmp_path / "ema", ema=0.9)
    for name, share in (("equal", 0.5), ("weighted", 0.25), ("ema", 0.9)):
        found = parameters(tmp_path / name / "step_00000004")
        for key, value in found.items():
            torch.testing.assert_close(value, share * first[key] + (1 - share) * last[key], rtol=1e-6, atol=1e-8)
    assert ht.load(tmp_path / "equal").logits(TOKENS).isfinite().all()
    with pytest.raises(UserError, match=r"has no optimizer state to resume from; expected .*train.init_from="):
        ht.train(tmp_path / "equal", "train.steps=6", resume=True)


def test_bf16_is_averaged_in_float32():
    assert sum(shares_of(7, None, 0.9)) == pytest.approx(1)
    assert shares_of(3, None, 0.5) == [0.25, 0.25, 0.5]
    assert shares_of(2, [2, 6], None) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "expected 2 positive numbers"),
        ({"weights": [1, 0]}, "expected 2 positive numbers"),
        ({"ema": 1.0}, "ema = 1.0: expected a decay between 0 and 1"),
        ({"ema": 0.5, "weights": [1, 2]}, "either weights or ema"),
    ],
)
def test_bad_averages_are_refused(options, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        average([run], tmp_path / "out", **options)
    with pytest.raises(UserError, match="1 given; expected at least 2"):
        average([run / "step_00000002"], tmp_path / "out")


def test_an_upcycled_model_gives_the_logits_of_the_dense_one(run, tmp_path):
    upcycle(run, tmp_path / "moe", 4)
    dense, sparse = ht.load(run), ht.load(tmp_path / "moe")
    block = sparse.config.model.blocks["mlp"]
    assert (block.type, block.num_experts, block.top_k, block.ffn_hidden_size) == ("moe", 4, 2, 64)
    torch.testing.assert_close(sparse.logits(TOKENS), dense.logits(TOKENS), rtol=1e-5, atol=1e-5)
    stored, before = parameters(tmp_path / "moe" / "step_00000000"), parameters(run / "step_00000004")
    assert stored["layers.1.mixer.down"].shape == (4, 32, 64)
    for key, origin in (("gate_up.gate", "gate_up.weight.gate"), ("down", "down.weight")):
        assert all(torch.equal(each, before[f"layers.1.mixer.{origin}"]) for each in stored[f"layers.1.mixer.{key}"])
    assert stored["layers.1.mixer.router_weight"].std() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("block", "model"),
    [({"norm_position": "post"}, {}), ({}, {"zero_centered_norms": True}), ({"ffn_hidden_size": None}, {})],
)
def test_an_upcycled_model_keeps_the_other_options_of_its_blocks(block, model, tmp_path):
    blocks = {
        "attn": {"type": "attention", "num_heads": 4, "norm_position": block.get("norm_position", "pre")},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 48, **block},
    }
    dense = untrained(tmp_path / "dense", {"blocks": blocks, "pattern": "2*(attn mlp)", **model})
    upcycle(dense, tmp_path / "moe", 3)
    sparse = ht.load(tmp_path / "moe")
    assert sparse.config.model.blocks["mlp"].type == "moe"
    expected = ht.load(dense).logits(TOKENS)
    assert expected.std() > 0.1
    torch.testing.assert_close(sparse.logits(TOKENS), expected, rtol=1e-5, atol=1e-5)


def untrained(folder, model, **sections):
    """A run of random values, also of its norms."""
    sections = {"data": DATA, **sections, "model": {"hidden_size": 32, "vocab_size": 260, **model}}
    config = build({**TINY, **sections}, RunConfig)
    tensors = {key: TensorInfo(shape, torch.float32) for key, shape in stored_shapes(config.model).items()}
    generator = torch.Generator().manual_seed(2)
    with new_run(folder, config, TrainState(), tensors) as sink:
        for key, info in tensors.items():
            sink.write(key, 0.2 * torch.randn(info.shape, generator=generator))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 1}, "top_k = 1: expected 2 to num_experts"),
        ({"top_k": 5}, "top_k = 5: expected 2 to num_experts"),
        ({"blocks": ["attn"]}, "blocks: attn: expected a swiglu block"),
        ({"blocks": []}, r"blocks = \[\]: expected at least one of mlp, or None for all"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(options, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        upcycle(run, tmp_path / "moe", 4, **options)


def test_a_vocabulary_grows_by_zeros_and_shrinks_only_where_named(run):
    source = CheckpointSource(run / "step_00000004")
    name = "embedding.weight"
    whole = source.read(name)
    larger = ResizedVocabulary(source, [name], len(whole) + 5)
    assert torch.equal(larger.read(name), torch.cat([whole, torch.zeros(5, 32)]))
    assert torch.equal(larger.read(name, (len(whole) - 1, 3), (3, 4))[:1], whole[-1:, 3:7])
    assert not larger.read(name, (len(whole) + 1, 0), (2, 32)).any()
    with pytest.raises(UserError, match=rf"{name} has {len(whole)} rows; expected 259: the 61 beyond are dropped only"):
        ResizedVocabulary(source, [name], 259)
    assert torch.equal(ResizedVocabulary(source, [name], 259, [name]).read(name), whole[:259])
    assert torch.equal(larger.read("final_norm.weight"), source.read("final_norm.weight"))


def test_verbs_write_where_the_command_line_says(run, tmp_path, capsys):
    assert convert.main(["reshard", str(run), str(tmp_path / "a"), "--files", "2", "--no-optimizer"]) == 0
    assert convert.main(["average", str(run), str(tmp_path / "b"), "--ema", "0.5"]) == 0
    assert convert.main(["upcycle", str(run), str(tmp_path / "c"), "--experts", "2"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in "abc"]
    assert not inspect(Path(tmp_path / "a")).has_optimizer
    with pytest.raises(UserError, match="--files = 0"):
        convert.main(["reshard", str(run), str(tmp_path / "d"), "--files", "0"])


@pytest.fixture(scope="module")
def sparse(config, tmp_path_factory):
    """A run of two steps of a model with experts, with checkpoints of both."""
    moe = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16}
    blocks = f"model.blocks={json.dumps({**TINY['model']['blocks'], 'moe': moe})}"
    options = ("train.steps=2", "schedule.warmup_steps=1", "checkpoint.save_every=1", "model.pattern=attn moe")
    return ht.train(config, f"folder={tmp_path_factory.mktemp('sparse') / 'run'}", *options, blocks).folder


def test_a_resharded_mixture_of_experts_is_trained_on(sparse, tmp_path, hybridtron):
    new = tmp_path / "new"
    reshard(sparse / "step_00000001", new, tensor=2)
    assert resolve(read_config(new)).parallel.sequence
    done = hybridtron("train", new / "config.yaml", "--nproc", 2, "--resume")
    assert done.returncode == 0, done.stderr
    losses = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (sparse, new)]
    assert [row["step"] for row in losses] == [2, 2]
    assert losses[1]["loss"] == pytest.approx(losses[0]["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("parallel", "tensor", "message"),
    [
        ({"tensor": 2, "sequence": True, "expert_tensor": 32}, 1, "parallel.expert_tensor = 32"),
        ({"context": 4}, 2, "parallel.tensor x context = 8"),
    ],
)
def test_a_layout_that_training_refuses_is_not_written(parallel, tensor, message, tmp_path):
    blocks = {"attn": {"type": "attention", "num_heads": 4}, "moe": {"type": "moe", "num_experts": 4}}
    blocks["moe"]["ffn_hidden_size"] = 16
    run = untrained(tmp_path / "run", {"blocks": blocks, "pattern": "attn moe"}, parallel=parallel)
    with pytest.raises(UserError, match=message):
        reshard(run, tmp_path / "new", tensor=tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
