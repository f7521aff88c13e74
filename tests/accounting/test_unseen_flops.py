"""FLOPs of layers that transform or make filters: PyTorch's counter sees all but what the primitive names as unseen.

Filters are made once for all sequences of a pass, so these are counted with one. Gradients take twice the forward pass;
the features of positions need none.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.mixers.implicit_filter.config import ImplicitFilterConfig
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

BLOCKS = {
    "short": {"type": "short_conv", "bias": True},
    "hyena": {"type": "hyena", "expand": 4, "projection_groups": 4, "filter_order": 4, "bias": True},
    "heads": {"type": "mh_hyena", "num_heads": 4, "filter_order": 2, "filter_embedding": 5},
    "narrow": {"type": "mh_hyena", "num_heads": 16, "filter_order": 2},
    "se": {"type": "hyena_se"},
    "mr": {"type": "hyena_mr", "filter_length": 24},
    "li": {"type": "hyena_li", "filter_order": 4},
    "experts": {"type": "hyena_experts", "num_experts": 4, "expert_size": 8, "bias": True},
    "light": {"type": "lightning_attention", "num_heads": 4, "key_dim": 4, "chunk_size": 16},
    "time": {"type": "rwkv6", "head_dim": 8, "mix_rank": 4, "decay_rank": 8},
    "channel": {"type": "rwkv6_channel"},
    "time7": {"type": "rwkv7", "head_dim": 8, "gate_rank": 6},
    "channel7": {"type": "rwkv6_channel", "receptance": False},
}
PATTERNS = [
    "short se li",
    "hyena heads experts",
    "narrow",
    "2*(mr li)",
    "time channel",
    "light",
    "time7 channel7 time7",
]


def model_and_config(pattern):
    config = build({"hidden_size": 32, "vocab_size": 64, "blocks": BLOCKS, "pattern": pattern}, ModelConfig)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    return model, config


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parameters_equal_the_counted_ones(pattern):
    model, config = model_and_config(pattern)
    assert describe(config, 32).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seq_len", [1, 32, 37, 300])
def test_flops_equal_those_of_the_counter_and_the_unseen(pattern, seq_len):
    model, config = model_and_config(pattern)
    blocks = [config.blocks[name] for name in config.layer_names]
    tokens = torch.zeros(1, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        nll, _ = model(tokens, tokens)
    with FlopCounterMode(display=False) as backward:
        nll.mean().backward()
    seen = describe(config, seq_len).flops_forward - sum(block.unseen_flops(seq_len) for block in blocks)
    assert forward.get_total_flops() == seen
    features = sum(
        2 * seq_len * block.filter_order * block.filter_embedding
        for block in blocks
        if isinstance(block, ImplicitFilterConfig)
    )
    assert backward.get_total_flops() == 2 * seen - features


def test_transforms_are_what_is_unseen():
    _, config = model_and_config("short hyena narrow heads se mr li experts time channel")
    unseen = {name: config.blocks[name].unseen_flops(64) for name in config.layer_names}
    assert {name for name, flops in unseen.items() if flops} == {"hyena", "narrow", "mr", "li", "experts"}
    # Width 128, size 128: two signals and a filter for every channel, and their product.
    assert unseen["hyena"] == 128 * (3 * round(2.5 * 128 * 7) + 6 * 65)


def test_the_state_of_explicit_filters_is_the_inputs_that_they_reach():
    _, config = model_and_config("short se mr li")
    assert [config.blocks[name].state_size(1000) for name in config.layer_names] == [2 * 32, 6 * 32, 23 * 32, 4 * 32]
