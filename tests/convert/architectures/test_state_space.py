"""What Mamba, Mamba-2, Nemotron-H, Bamba and Jamba cannot express, and old forms of their settings."""

import pytest

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

_EXPERTS = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 96, "activation": "relu2", "score": "sigmoid",
            "balance": "bias"}  # fmt: skip
BLOCKS = {
    "mamba": {"type": "mamba1", "inner_norm": "learned"},
    "bare": {"type": "mamba1"},
    "thin": {"type": "mamba1", "expand": 1.5},
    "ssd": {"type": "mamba2", "head_dim": 16},
    "capped": {"type": "mamba2", "head_dim": 16, "dt_limit_max": 0.5},
    "attn": {"type": "attention", "num_heads": 4, "rotary_fraction": 0.0},
    "rotary": {"type": "attention", "num_heads": 4},
    "near": {"type": "attention", "num_heads": 4, "rotary_fraction": 0.0, "window": 8},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 96},
    "ffn": {"type": "mlp"},
    "moe": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 96, "normalize_top_k": False},
    "wide": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 128, "normalize_top_k": False},
    "relu": {"type": "mlp", "activation": "relu2", "bias": True},
    "chosen": {**_EXPERTS, "shared_ffn_hidden_size": 32},
    "soft": {**_EXPERTS, "shared_ffn_hidden_size": 32, "score": "softmax"},
    "lone": _EXPERTS,
    "divided": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 96},
}


def model(pattern, **keys):
    names = {name for name in BLOCKS if name in pattern.replace("(", " ").replace(")", " ").replace("*", " ").split()}
    blocks = {name: BLOCKS[name] for name in names}
    return build({"hidden_size": 64, "vocab_size": 96, "blocks": blocks, "pattern": pattern, **keys}, ModelConfig)


@pytest.mark.parametrize(
    ("architecture", "pattern", "message"),
    [
        ("mamba", "bare attn", "cannot express layer 1 (attn, attention): expected mamba1 here"),
        ("mamba", "bare mamba", "layer 1 (mamba, mamba1): its inner_norm is learned"),
        ("mamba", "bare thin", "layer 1 (thin, mamba1): its expand is 1.5; expected 2"),
        ("mamba", "thin thin", "layer 0 (thin, mamba1): its expand is 1.5; expected a whole number"),
        ("falcon_mamba", "bare", "layer 0 (bare, mamba1): its inner_norm is none; expected plain"),
        ("mamba2", "ssd capped", "layer 1 (capped, mamba2): its dt_limit_max is 0.5"),
        ("nemotron_h", "ssd ffn mlp", "layer 2 (mlp, swiglu): expected one of mamba2, attention, mlp, moe"),
        ("nemotron_h", "ssd rotary", "layer 1 (rotary, attention): it has rotary positions"),
        ("nemotron_h", "ffn near", "layer 1 (near, attention): its window is 8"),
        ("nemotron_h", "ffn capped", "layer 1 (capped, mamba2): its dt_limit_max is 0.5"),
        ("nemotron_h", "ssd moe", "layer 1 (moe, moe): its activation is swiglu"),
        ("nemotron_h", "relu ffn", "layer 1 (ffn, mlp): its activation is not that of layer 0"),
        ("nemotron_h", "lone", "layer 0 (lone, moe): expected a shared expert"),
        ("nemotron_h", "soft", "layer 0 (soft, moe): expected score sigmoid and balance bias"),
        ("nemotron_h", "relu chosen", "layer 1 (chosen, moe): it has no biases"),
        ("bamba", "ssd mlp ssd", "layer 2 (ssd, mamba2): expected swiglu after it"),
        ("bamba", "ssd attn", "layer 1 (attn, attention): expected swiglu here"),
        ("bamba", "ssd mlp attn mlp", "layer 2 (attn, attention): it has no rotary positions"),
        ("jamba", "bare mlp", "layer 0 (bare, mamba1): its inner_norm is none; expected learned"),
        ("jamba", "mamba mlp rotary mlp", "layer 2 (rotary, attention): it has rotary positions"),
        ("jamba", "mamba divided", "layer 1 (divided, moe): it divides the chosen scores by their sum"),
        ("jamba", "mamba mlp mamba wide", "layer 3 (wide, moe): its experts are not as wide"),
        (
            "jamba",
            "attn mlp 2*(mamba mlp) attn mlp mamba mlp attn mlp",
            "layer 10 (attn, attention): such layers come once",
        ),
        ("jamba", "mamba moe mamba mlp mamba moe mamba moe", "layer 7 (moe, moe): such layers come once"),
        (
            "jamba",
            "3*(mamba mlp) attn mlp attn mlp",
            "layer 6 (attn, attention): such layers come once in a period there, which is 1",
        ),
    ],
)
def test_the_first_layer_that_does_not_fit_is_named(architecture, pattern, message):
    with pytest.raises(UserError) as raised:
        ARCHITECTURES[architecture].to_theirs(model(pattern))
    assert message in str(raised.value)


def test_nemotron_h_has_no_tied_embeddings():
    with pytest.raises(UserError, match=r"cannot express model\.tie_embeddings"):
        ARCHITECTURES["nemotron_h"].to_theirs(model("ssd", tie_embeddings=True))


@pytest.mark.parametrize(
    "pattern", ["mamba mlp", "attn mlp", "3*(attn moe)", "2*(mamba mlp) attn moe 3*(mamba mlp) attn moe"]
)
def test_jamba_has_the_layers_of_its_periods(pattern):
    theirs = ARCHITECTURES["jamba"].to_theirs(model(pattern))
    ours = build(ARCHITECTURES["jamba"].to_ours(Settings(theirs)), ModelConfig)
    kinds = [[each.blocks[name].type for name in each.layer_names] for each in (ours, model(pattern))]
    assert kinds[0] == kinds[1]


def test_nemotron_h_is_read_from_its_first_form():
    """As published before transformers had the architecture."""
    settings = {"hidden_size": 64, "vocab_size": 96, "hybrid_override_pattern": "M-M*-", "mamba_num_heads": 6,
                "mamba_head_dim": 16, "n_groups": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                "intermediate_size": 96}  # fmt: skip
    ours = build(ARCHITECTURES["nemotron_h"].to_ours(Settings(settings)), ModelConfig)
    assert ours.layer_names == ("mamba", "mlp", "mamba", "attn", "mlp")
    assert ours.blocks["mamba"].inner_size == 96


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers_block_type", ["linear_attention", "retention"], "layer 1 of layers_block_type is 'retention'"),
        ("num_nextn_predict_layers", 1, "num_nextn_predict_layers = 1"),
        ("mlp_hidden_act", "gelu", "mlp_hidden_act = 'gelu'"),
    ],
)
def test_settings_of_nemotron_h_without_layers_here_are_refused(key, value, message):
    settings = {"hidden_size": 64, "vocab_size": 96, "layers_block_type": ["mlp"], key: value}
    with pytest.raises(UserError, match=message):
        ARCHITECTURES["nemotron_h"].to_ours(Settings(settings))


def test_limits_of_the_step_size_are_two_numbers():
    settings = {"hidden_size": 64, "vocab_size": 96, "num_hidden_layers": 1, "time_step_limit": [0.1]}
    with pytest.raises(UserError, match=r"time_step_limit = .* expected two numbers"):
        ARCHITECTURES["mamba2"].to_ours(Settings(settings))
