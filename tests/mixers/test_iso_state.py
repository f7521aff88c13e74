"""The layers that the MAD paper (Poli et al. 2024, arXiv 2403.17844) gives a state of 4,096 elements in all, at its
width of 128: each has as many elements as the paper counts."""

import pytest

from hybridtron.accounting.describe import describe
from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig

WIDTH = 128
ISO_STATE = {
    "mamba1": ({"state_dim": 4}, "4*mixer", 4 * 256 * 4),
    "gla": ({"num_heads": 8, "expand_k": 1.0}, "2*(mixer mlp)", 2 * 8 * 16 * 16),
    "hyena": ({"expand": 4, "filter_order": 4}, "2*(mixer mlp)", 2 * 512 * 4),
    "hyena_experts": ({"num_experts": 8, "expert_size": 16, "filter_order": 16}, "2*(mixer mlp)", 2 * 8 * 16 * 16),
    "mh_hyena": ({"num_heads": 16, "filter_order": 2}, "2*(mixer mlp)", 2 * 16 * 8 * 8 * 2),
    "rwkv6": ({"head_dim": 16}, "2*(mixer mlp)", 2 * 8 * 16 * 16),
}


def state_size(mixer, pattern, seq_len=128):
    blocks = {"mixer": mixer, "mlp": {"type": "swiglu"}}
    config = {"hidden_size": WIDTH, "vocab_size": 64, "blocks": blocks, "pattern": pattern}
    return describe(build(config, ModelConfig), seq_len).state_size


@pytest.mark.parametrize("primitive", ISO_STATE)
def test_a_total_state_of_4096(primitive):
    keys, pattern, expected = ISO_STATE[primitive]
    assert state_size({"type": primitive, **keys}, pattern) == expected == 4096


def test_linear_attention_has_half_of_that_and_its_sums_of_keys():
    heads = {"type": "linear_attention", "num_heads": 16}
    assert state_size({**heads, "normalize": False}, "2*(mixer mlp)") == 2048
    assert state_size(heads, "2*(mixer mlp)") == 2048 + 2 * 16 * 8


def test_one_head_in_place_of_many_has_far_more():
    assert state_size({"type": "gla", "num_heads": 1, "expand_k": 1.0}, "2*(mixer mlp)") == 32768


def test_the_state_of_attention_grows_up_to_its_window():
    attention = {"type": "attention", "num_heads": 16}
    assert [state_size(attention, "mixer", s) for s in (64, 128)] == [2 * 128 * 64, 2 * 128 * 128]
    assert [state_size({**attention, "window": 32}, "mixer", s) for s in (16, 64)] == [2 * 128 * 16, 2 * 128 * 32]


def test_branches_side_by_side_have_the_sum_of_their_states():
    branches = [{"type": "gla", "num_heads": 8, "expand_k": 1.0}, {"type": "mamba1", "state_dim": 4}]
    assert state_size({"type": "parallel", "branches": branches}, "mixer") == 2048 + 1024
