"""A total state of 4,096 for architectures of all kinds."""

import pytest

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture, from_layers, from_model
from hybridtron.mad.models.iso_state import iso_state
from hybridtron.model.config import ModelConfig

ATTENTION = {"type": "attention", "num_heads": 16}
MAMBA = {"type": "mamba2", "head_dim": 16, "state_dim": 128}
MLP = {"type": "mlp"}


@pytest.mark.parametrize("layer", ["gated-linear-attention", "mh-linear-attention", "mamba", "mamba2", "hyena"])
def test_the_state_comes_as_near_to_4096_as_the_layer_allows(layer):
    made = iso_state(from_layers([layer, "swiglu"] * 2))
    assert abs(made.account()["state_size"] - 4096) <= 256
    assert made.notes[-1].startswith("total state 4,")


def test_in_a_hybrid_attention_stays_and_the_fixed_layers_share_the_state():
    plain = from_layers(["mh-attention", "swiglu", "mamba", "swiglu"])
    made = iso_state(plain)
    assert made.blocks["mh_attention"] == plain.blocks["mh_attention"]
    assert made.blocks["mamba"]["state_dim"] == 16


def test_modal_filters_are_set_by_their_order():
    made = iso_state(Architecture("x", {"li": {"type": "hyena_li"}, "mlp": MLP}, "2*(li mlp)"))
    assert made.blocks["li"]["filter_order"] == 16
    assert made.account()["state_size"] == 4096


def test_branches_of_fixed_state_share_it_with_the_other_layers():
    """Two layers with one such branch each and one plain layer: a third of 4,096 for each, 256 channels wide."""
    both = {"type": "parallel", "branches": [ATTENTION, MAMBA]}
    made = iso_state(Architecture("x", {"both": both, "m": MAMBA, "mlp": MLP}, "both mlp m mlp both mlp"))
    attention, mamba = made.blocks["both"]["branches"]
    assert attention == ATTENTION
    assert mamba["state_dim"] == made.blocks["m"]["state_dim"] == 5
    assert made.notes[-1] == f"total state {3 * 256 * 5:,} of the 4,096 asked for"


def test_branches_within_branches_of_a_large_model_are_set_too():
    inner = {"type": "parallel", "branches": [MAMBA, {"type": "gla", "num_heads": 4}]}
    outer = {"type": "parallel", "branches": [inner, ATTENTION]}
    large = build({"hidden_size": 1024, "vocab_size": 64, "blocks": {"p": outer}, "pattern": "p"}, ModelConfig)
    made = iso_state(from_model("nested", large))
    mamba, gla = made.blocks["p"]["branches"][0]["branches"]
    assert mamba["state_dim"] == 8
    assert gla["num_heads"] in (2, 4, 8)
    assert made.model(16, 32).blocks["p"].branches[0].branches[0].state_dim == 8


def test_nothing_changes_where_no_state_is_fixed():
    plain = Architecture("x", {"p": {"type": "parallel", "branches": [ATTENTION, MLP]}}, "p")
    made = iso_state(plain)
    assert made.blocks == plain.blocks
    assert made.notes[-1] == "no layer with a state of fixed size"


def test_a_state_that_no_key_sets_is_refused_by_its_place():
    branches = {"type": "parallel", "branches": [ATTENTION, {"type": "hyena_mr"}]}
    with pytest.raises(
        UserError, match=r"iso_state: block p.branches\[1\] of type hyena_mr: expected one of linear_attention, "
    ):
        iso_state(Architecture("x", {"p": branches}, "p"))
