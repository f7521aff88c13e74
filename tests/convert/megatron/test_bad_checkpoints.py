"""Checkpoints that do not hold what they should, and verbs of the command line."""

import json

import pytest
import torch

import hybridtron
from hybridtron.cli.main import main
from hybridtron.config.load import build
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.megatron.from_megatron import from_megatron
from hybridtron.convert.megatron.sink import MegatronSink, common_state
from hybridtron.convert.megatron.table import Naming, table
from hybridtron.convert.megatron.to_arguments import megatron_arguments
from hybridtron.convert.megatron.to_megatron import to_megatron
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

BLOCKS = {
    "mamba": {"type": "mamba2", "head_dim": 8, "state_dim": 8},
    "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "rotary_fraction": 0.0},
    "mlp": {"type": "mlp", "ffn_hidden_size": 48, "activation": "relu2"},
}
MODEL = {"hidden_size": 32, "vocab_size": 70, "blocks": BLOCKS, "pattern": "mamba attn mlp"}
CONFIG = build(MODEL, ModelConfig)
NAMING = Naming("mamba", stacked=False)
NORMS = {  # of other modules than Transformer Engine's
    "decoder.layers.0.mixer.in_proj.layer_norm_weight": "decoder.layers.0.norm.weight",
    "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": "decoder.layers.1.input_layernorm.weight",
    "decoder.layers.2.mlp.linear_fc1.layer_norm_weight": "decoder.layers.2.pre_mlp_layernorm.weight",
}


def tensors():
    """The tensors of a checkpoint of MODEL."""
    shapes = stored_shapes(CONFIG)
    generator = torch.Generator().manual_seed(5)
    entries = table(CONFIG, NAMING).entries
    return {entry.name: torch.randn(entry.shape_there(shapes), generator=generator) for entry in entries}


def write(folder, contents, common=None):
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in contents.items()}
    common = common_state(megatron_arguments(CONFIG, "mamba"), NAMING) if common is None else common
    with MegatronSink(folder, infos, False, ["rng_state/shard_0_1"], common) as sink:
        for name, tensor in contents.items():
            sink.write(name, tensor)
    return folder


def stored(run):
    source = CheckpointSource(run / "step_00000000")
    return {key: source.read(key) for key in source.tensors}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_norms_have_either_name(tmp_path):
    contents = tensors()
    from_megatron(write(tmp_path / "fused", contents), tmp_path / "one")
    renamed = {NORMS.get(name, name): tensor for name, tensor in contents.items()}
    from_megatron(write(tmp_path / "separate", renamed), tmp_path / "other")
    assert_equal(stored(tmp_path / "one"), stored(tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all: all.pop("decoder.layers.0.mixer.A_log"), r"1 missing: decoder\.layers\.0\.mixer\.A_log"),
        (lambda all: all.update({"mtp.layers.0.norm.weight": torch.ones(3)}), r"1 left over: mtp\.layers\.0\.norm"),
        (lambda all: all.update({"decoder.final_norm.bias": torch.ones(32)}), "LayerNorm"),
        (lambda all: all.update({"decoder.layers.0.mixer.D": torch.ones(4)}), r"mixer\.D \[4\] \(expected \[8\]\)"),
        (lambda all: all.pop("decoder.final_norm.weight"), "no GPTModel or MambaModel"),
    ],
)
def test_tensors_too_many_too_few_or_of_another_shape_are_named(tmp_path, change, message):
    contents = tensors()
    change(contents)
    with pytest.raises(UserError, match=message):
        from_megatron(write(tmp_path / "theirs", contents), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_gpt_checkpoint_needs_attention_and_feed_forward_in_turn(tmp_path):
    contents = tensors()
    contents["decoder.final_layernorm.weight"] = contents.pop("decoder.final_norm.weight")
    with pytest.raises(UserError, match="holds a GPTModel"):
        from_megatron(write(tmp_path / "theirs", contents), tmp_path / "ours")


def test_settings_come_from_a_config_where_there_are_no_arguments(tmp_path, capsys):
    folder = write(tmp_path / "theirs", tensors(), {"iteration": 3})
    assert main(["convert", "from-megatron", str(folder), str(tmp_path / "ours")]) == 2
    assert "--config" in capsys.readouterr().err
    (tmp_path / "model.yaml").write_text(json.dumps({"model": MODEL}))
    command = [
        "convert",
        "from-megatron",
        str(folder),
        str(tmp_path / "ours"),
        "--config",
        str(tmp_path / "model.yaml"),
    ]
    assert main(command) == 0
    assert hybridtron.load(tmp_path / "ours").logits(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 70)


def test_padding_of_the_vocabulary_is_dropped_only_where_the_number_of_tokens_is_given(tmp_path):
    contents, padded = tensors(), tensors()
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        padded[name] = torch.cat([padded[name], torch.zeros(10, 32)])
    from_megatron(write(tmp_path / "theirs", contents), tmp_path / "ours")
    folder = write(tmp_path / "padded", padded)
    from_megatron(folder, tmp_path / "whole")
    assert stored(tmp_path / "whole")["embedding.weight"].shape == (80, 32)
    from_megatron(folder, tmp_path / "cut", vocab_size=70)
    assert_equal(stored(tmp_path / "cut"), stored(tmp_path / "ours"))
    with pytest.raises(UserError, match=r"word_embeddings\.weight \[70, 32\] \(expected \[75, 32\]\)"):
        from_megatron(tmp_path / "theirs", tmp_path / "more", vocab_size=75)


def test_a_run_goes_to_megatron_and_back_by_the_command_line(tmp_path, capsys):
    from_megatron(write(tmp_path / "theirs", tensors()), tmp_path / "ours")
    assert main(["convert", "to-megatron", str(tmp_path / "ours"), str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert main(["convert", "from-megatron", str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    assert "bitwise" in capsys.readouterr().out
    receipt = json.loads((tmp_path / "there" / "conversion.json").read_text())
    assert receipt["equal"]
    assert len(receipt["tensors"]) == len(tensors())
    assert_equal(stored(tmp_path / "back"), stored(tmp_path / "ours"))


def test_a_model_that_is_no_gpt_is_refused_as_one(tmp_path):
    from_megatron(write(tmp_path / "theirs", tensors()), tmp_path / "ours")
    with pytest.raises(UserError, match="kind = 'gpt': GPTModel"):
        to_megatron(tmp_path / "ours", tmp_path / "there", kind="gpt")


def test_a_folder_that_is_no_checkpoint_and_a_wrong_tracker_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        from_megatron(tmp_path, tmp_path / "ours")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("../elsewhere")
    with pytest.raises(UserError, match="expected the number of an iteration"):
        from_megatron(tmp_path, tmp_path / "ours")
