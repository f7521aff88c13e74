"""Architectures made as large as a baseline, by one width that a note names."""

import pytest

from hybridtron import mad
from hybridtron.cli.main import main
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import from_layers, from_pattern
from hybridtron.mad.models.equal_size import size, with_size_of

BASELINE = from_pattern("2*(mh_attention swiglu)")


@pytest.mark.parametrize("mixer", ["mamba", "mh_hyena", "gated_linear_attention"])
def test_parameters_are_those_of_the_baseline(mixer):
    plain = from_pattern(f"2*({mixer} swiglu)")
    made = with_size_of(plain, BASELINE)
    assert size(plain) != pytest.approx(size(BASELINE), rel=0.01)
    assert made.account()["parameters"] == pytest.approx(BASELINE.account()["parameters"], rel=0.01)
    assert "by model.blocks.swiglu.ffn_hidden_size" in made.notes[-1]
    assert made.fingerprint() != plain.fingerprint()


def test_the_baseline_itself_stays():
    same = from_layers(["mh-attention", "swiglu"] * 2)
    assert with_size_of(same, BASELINE).fingerprint() == same.fingerprint()


def test_without_a_feed_forward_layer_the_width_is_changed():
    made = with_size_of(from_pattern("3*mamba2"), BASELINE, tolerance=0.05)
    assert "by model.hidden_size 128 -> " in made.notes[-1]
    assert size(made) == pytest.approx(size(BASELINE), rel=0.05)


@pytest.mark.parametrize(
    ("adjust", "words"),
    [
        ("model.blocks.mamba.state_dim", "adjust = model.blocks.mamba.state_dim: no value comes within 0.01"),
        ("model.blocks.mamb.state_dim", r"adjust = model.blocks.mamb.state_dim: expected .*model.blocks.mamba.KEY"),
        (
            "model.blocks.mamba.type",
            "adjust = model.blocks.mamba.type: holds 'mamba1'; expected a key that",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(adjust, words):
    with pytest.raises(UserError, match=words):
        with_size_of(from_pattern("mamba swiglu"), from_pattern("swiglu"), adjust=adjust)


def test_a_score_takes_a_baseline():
    with pytest.raises(UserError, match=r"^adjust = model.hidden_size: is for match_parameters"):
        mad.score("mamba swiglu", adjust="model.hidden_size")
    with pytest.raises(UserError, match=r"adjust = model\.blocks\.swiglu\.bias: "):
        mad.score("mamba swiglu", match_parameters="2*(mh_attention swiglu)", adjust="model.blocks.swiglu.bias")


def test_the_command_names_the_sizes(tmp_path, capsys):
    words = ["mad", "run", "--layers", "mamba", "swiglu", "--match-parameters", "attention swiglu", "--adjust"]
    assert main([*words, "model.blocks.swiglu.ffn_hidden_size", "--out", str(tmp_path / "a"), "--dry-run"]) == 0
    assert main([*words, "model.blocks.swiglu.ffn", "--out", str(tmp_path / "a")]) == 2
    assert "--adjust = model.blocks.swiglu.ffn: " in capsys.readouterr().err
    assert main(["mad", "run", "--layers", "mamba", "--adjust", "model.hidden_size"]) == 2
    assert "--adjust = model.hidden_size: is for --match-parameters" in capsys.readouterr().err
