"""Settings of config.json whose value transformers takes from another one, or refuses."""

import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.architectures.architecture import Settings
from hybridtron.model.config import ModelConfig

SMALL = {"hidden_size": 64, "vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 96, "max_position_embeddings": 512}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0}
LENGTH = "original_max_position_embeddings"


def ours(architecture, **values):
    settings = Settings({**SMALL, **values})
    model = build(ARCHITECTURES[architecture].to_ours(settings), ModelConfig)
    settings.check_all_read()
    return model


@pytest.mark.parametrize("rotary", [LLAMA3, YARN], ids=["llama3", "yarn"])
@pytest.mark.parametrize(
    ("inside", "beside", "expected"),
    [({LENGTH: 128}, {}, 128), ({}, {}, 512), ({}, {LENGTH: 64}, 64), ({LENGTH: 128}, {LENGTH: 64}, 64)],
)
def test_original_length_is_that_of_transformers(rotary, inside, beside, expected):
    values = {**SMALL, "rope_parameters": {**rotary, **inside}, **beside}
    assert ours("llama", **values).blocks["attn"].rotary_scaling.original_max_position_embeddings == expected
    theirs = AutoConfig.for_model("llama", **{**values, "rope_parameters": {**rotary, **inside}})
    ROPE_INIT_FUNCTIONS[rotary["rope_type"]](theirs)  # reads the setting beside rope_parameters
    assert theirs.rope_parameters[LENGTH] == expected
