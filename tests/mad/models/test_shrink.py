"""Every primitive at proxy width, by the facts that its keys state."""

import pytest

from hybridtron.config.load import build
from hybridtron.mad.models.architecture import from_model
from hybridtron.mad.models.layers import LAYERS
from hybridtron.model.config import ModelConfig

WIDE = 1024


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_shrinks_to_one_that_can_be_built(layer):
    large = build({"hidden_size": WIDE, "vocab_size": 64, "blocks": {"x": LAYERS[layer]}, "pattern": "x"}, ModelConfig)
    small = from_model("x", large).model(16, 32).blocks["x"]
    assert small.hidden_size == 128
    assert small.parameters() < large.blocks["x"].parameters()


def test_latent_attention_keeps_its_proportions():
    block = {"type": "mla", "num_heads": 32, "head_dim": 128, "kv_rank": 512, "q_rank": 256, "rotary_dim": 64}
    large = build({"hidden_size": WIDE, "vocab_size": 64, "blocks": {"x": block}, "pattern": "x"}, ModelConfig)
    small = from_model("x", large).model(16, 32).blocks["x"]
    assert (small.num_heads, small.key_size, small.kv_rank, small.q_rank, small.rotary_dim) == (16, 8, 64, 32, 16)
