"""One key of a config makes its model as large as another's, within 0.1 %, or the nearest values are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import hybridtron as ht
from hybridtron.cli.main import main
from tests.conftest import TINY

MODELS = Path(__file__).parents[2] / "configs" / "models"
PAIRS = [  # the config that is changed, the other, what is made equal, the key that is taken by default
    ("llama3_2", "mamba2", "parameters", "model.blocks.mlp.ffn_hidden_size"),
    ("nemotron_h", "llama3_2", "parameters", "model.blocks.mlp.ffn_hidden_size"),
    ("striped_hyena_moe", "transformer_pp", "non_embedding", None),
    ("transformer_pp", "nemotron_h", "flops", "model.blocks.mlp.ffn_hidden_size"),
]


@pytest.mark.parametrize(("name", "other", "of", "key"), PAIRS)
def test_families_are_made_equal_within_a_thousandth(name, other, of, key):
    files = [MODELS / f"{each}.yaml" for each in (name, other)]
    match = ht.match_size(files[0], files[1], "size=160m", of=of, other_overrides=["size=160m"])
    assert key is None or match.key == key
    assert abs(match.difference) <= 1e-3
    (changed, reference) = (
        ht.describe(files[0], "size=160m", match.override),
        ht.describe(files[1], "size=160m", f"data.seq_len={match.config.data.seq_len}"),
    )
    sizes = [size_of(account, of) for account in (changed, reference)]
    assert sizes == [match.size, match.target]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def size_of(account, of):
    numbers = account.as_json()
    if of == "flops":
        return account.flops_forward / account.seq_len
    if of == "state":
        return numbers["state_size"]
    return numbers["parameters"]["total" if of == "parameters" else of]


def test_state_is_matched_by_the_size_of_the_state():
    hybrid = {"hidden_size": 64, "blocks": TINY["model"]["blocks"], "pattern": "mamba mlp attn mlp"}
    match = ht.match_size({**hybrid, "pattern": "mamba mlp mamba mlp"}, hybrid, of="state")
    assert match.key == "model.blocks.mamba.state_dim"
    assert ht.describe({**hybrid, "pattern": "mamba mlp mamba mlp"}, match.override).state_size == match.size
    assert match.size == match.target


def test_a_model_that_is_as_large_already_keeps_its_value():
    """Also where another would do, as of a block that the pattern does not have."""
    blocks = {**TINY["model"]["blocks"], "more": {"type": "swiglu", "ffn_hidden_size": 48}}
    hybrid = {"hidden_size": 64, "blocks": blocks, "pattern": "mamba mlp attn mlp"}
    match = ht.match_size(hybrid, hybrid, adjust="model.blocks.more.ffn_hidden_size")
    assert (match.value, match.difference) == (48, 0)


@pytest.fixture
def two(tmp_path, tiny):
    """The tiny hybrid, and a config of the same blocks with attention alone, which needs no other file."""
    config = yaml.safe_load(tiny.read_text())
    config["model"]["pattern"] = "attn mlp attn mlp"
    other = tmp_path / "attention.yaml"
    other.write_text(yaml.safe_dump(config))
    return tiny, other


def test_the_command_prints_the_override_and_writes_a_config(two, tmp_path, capsys):
    config, other = map(str, two)
    written = tmp_path / "equal.yaml"
    words = ["describe", other, "--match-parameters", config, "--tolerance", "0.01"]
    assert main([*words, "--out", str(written)]) == 0
    override = ht.match_size(other, config, tolerance=0.01).override
    shown = capsys.readouterr().out
    assert f"{override} (was 64): " in shown
    assert "model.blocks.mlp.ffn_hidden_size=" in shown
    assert ht.describe(written).total == ht.describe(other, override).total
    assert main([*words, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["match"]["override"] == override
    assert numbers["match"]["size"] == numbers["parameters"]["total"]
    assert main([*words, "--out", str(written)]) == 2
    assert "--out = " in capsys.readouterr().err


def test_training_takes_the_width_that_matches(two, capsys):
    config, other = map(str, two)
    assert main(["train", other, "--match-flops", config, "--tolerance", "0.01", "--print"]) == 0
    printed = capsys.readouterr()
    match = ht.match_size(other, config, of="flops", tolerance=0.01)
    assert yaml.safe_load(printed.out)["model"]["blocks"]["mlp"]["ffn_hidden_size"] == match.value
    assert f"{match.override} (was 64): " in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adjust", "model.hidden_size"], r"32 gives .*%\), \d+ gives .*; between them, .*num_heads = 4: expected a"),
        (
            ["--adjust", "model.blocks.attn.head_dm"],
            "--adjust = model.blocks.attn.head_dm: .*nearest: model.blocks.attn.head_dim",
        ),
        (
            ["--adjust", "optimizer.lr"],
            "--adjust = optimizer.lr: holds 0.003; expected a key that holds a whole number",
        ),
        (["--adjust", "train.steps"], "--adjust = train.steps: changes no size of a model; expected a key below model"),
        (["--multiple-of", "64"], "--adjust = model.blocks.mlp.ffn_hidden_size: no value comes within 0.001 of the "),
        (["--tolerance", "2"], "--tolerance = 2.0: expected a number between 0 and 1"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_nearest_values(two, capsys, words, message):
    config, other = map(str, two)
    assert main(["describe", other, *words, "--match-parameters", config]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_key_to_adjust_needs_something_to_match(two, capsys):
    assert main(["describe", str(two[0]), "--adjust", "model.hidden_size"]) == 2
    assert "--adjust = model.hidden_size: is for --match-parameters" in capsys.readouterr().err
    assert main(["describe", str(two[0]), "--match-state", "nowhere.yaml"]) == 2
    assert "--match-state = nowhere.yaml: no such config file or run folder" in capsys.readouterr().err
