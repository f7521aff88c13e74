"""Settings of config.json whose value transformers takes from another one, or refuses."""

import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
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


SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
FULL = {"layer_types": ["full_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("gpt_oss", {"sliding_window": None}),
        ("gpt_oss", {"sliding_window": None, **SLIDING}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None, **SLIDING}),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 8, **SLIDING}),
    ],
)
def test_layers_with_a_window_need_its_width(architecture, values):
    with pytest.raises(UserError, match="sliding_window = null: expected a width"):
        ours(architecture, **values)


@pytest.mark.parametrize(
    ("architecture", "values", "windows"),
    [
        ("gpt_oss", {}, [128, None]),
        ("gpt_oss", {"sliding_window": None, **FULL}, [None, None]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1}, [None, None]),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, [None, 4096]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {}, [4096, 4096]),
    ],
)
def test_a_window_that_is_null_is_none(architecture, values, windows):
    model = ours(architecture, num_key_value_heads=4, **values)
    assert [model.blocks[name].window for name in model.layer_names[::2]] == windows


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gpt_oss", "jamba", "bamba"])
def test_key_value_heads_that_are_null_are_as_many_as_heads(architecture):
    values = {"attn_layer_indices": [0]} if architecture == "bamba" else {}
    if architecture == "jamba":
        values = {"attn_layer_period": 2, "attn_layer_offset": 0}
    model = ours(architecture, num_key_value_heads=None, **values)
    attention = next(block for block in model.blocks.values() if block.type == "attention")
    assert attention.kv_heads == 4
