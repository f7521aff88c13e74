"""config.json as models were published with it, small: settings are known, and mean what they do in transformers."""

import pytest

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors

_STEPS = {"time_step_floor": 1e-4, "time_step_max": 0.1, "time_step_min": 0.001, "time_step_scale": 1.0,
          "time_step_init_scheme": "random", "rescale_prenorm_residual": False, "residual_in_fp32": True}  # fmt: skip
_MAMBA2 = {"mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 24,
           "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 8, "mamba_proj_bias": False}  # fmt: skip
_ATTENTION = {"attention_dropout": 0.0, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu"}
PUBLISHED = {
    "mamba": {
        "conv_kernel": 4, "d_inner": 128, "d_model": 64, "expand": 2, "fused_add_norm": True, "hidden_act": "silu",
        "hidden_size": 64, "initializer_range": 0.1, "intermediate_size": 128, "layer_norm_epsilon": 1e-05,
        "n_layer": 2, "num_hidden_layers": 2, "rms_norm": True, "ssm_cfg": {}, "state_size": 16,
        "pad_vocab_size_multiple": 8, "time_step_rank": 4, "use_bias": False, "use_cache": True,
        "use_conv_bias": True, "vocab_size": 96, **_STEPS,
    },
    "falcon_mamba": {
        "conv_kernel": 4, "expand": 16, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.1,
        "intermediate_size": 128, "layer_norm_epsilon": 1e-05, "num_hidden_layers": 2, "state_size": 16,
        "tie_word_embeddings": False, "time_step_rank": 4, "use_bias": False, "use_conv_bias": True, "vocab_size": 96,
        **_STEPS,
    },
    "granitemoehybrid": {
        "attention_bias": False, "attention_multiplier": 0.0078125, "embedding_multiplier": 12, "hidden_size": 64,
        "init_method": "mup", "intermediate_size": 32, "layer_types": ["mamba", "attention"], "logits_scaling": 6,
        "max_position_embeddings": 4096, "normalization_function": "rmsnorm", "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "num_local_experts": 4, "output_router_logits": False,
        "position_embedding_type": "nope",
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000,
        "router_aux_loss_coef": 0.01, "shared_intermediate_size": 48, "tie_word_embeddings": True, "vocab_size": 96,
        **_MAMBA2, **_ATTENTION,
    },
    "bamba": {
        "attention_bias": False, "attn_layer_indices": [1], "attn_rotary_emb": 8, "hidden_size": 64,
        "intermediate_size": 96, "max_position_embeddings": 4096, "mlp_bias": False, "num_hidden_layers": 2,
        "num_logits_to_keep": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 96, **_MAMBA2, **_ATTENTION,
    },
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "calc_logits_for_entire_prompt": False,
        "expert_layer_offset": 1,
        "expert_layer_period": 2, "hidden_size": 64, "intermediate_size": 96, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 4, "mamba_expand": 2, "mamba_inner_layernorms": True,
        "mamba_proj_bias": False, "n_ctx": 4096, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2,
        "output_router_logits": False, "rms_norm_eps": 1e-06, "router_aux_loss_coef": 0.001, "sliding_window": None,
        "tie_word_embeddings": False, "use_mamba_kernels": True, "vocab_size": 96, **_ATTENTION,
    },
}  # fmt: skip


def ours(name, **changes):
    settings = Settings({"model_type": name, **PUBLISHED[name], **changes})
    model = build(ARCHITECTURES[name].to_ours(settings), ModelConfig)
    settings.check_all_read()
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_those_of_the_model_that_transformers_builds(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = ours(name)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **PUBLISHED[name]))
    elements = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(spec.numel for spec in model_tensors(model).values()) == elements


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mamba", {"d_inner": 96}, "d_inner = 96: expected 128"),
        ("mamba", {"rms_norm": False}, "rms_norm = False: expected True"),
        ("mamba", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg"),
        ("bamba", {"attn_rotary_emb": 16}, "attn_rotary_emb = 16: expected 8"),
        ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms = False"),
        ("granitemoehybrid", {"normalization_function": "layernorm"}, "normalization_function = 'layernorm'"),
    ],
)
def test_published_settings_that_say_another_thing_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        ours(name, **changes)
