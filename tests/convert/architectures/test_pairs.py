"""What LFM2, Qwen3-Next and OLMo-Hybrid cannot express is refused, by the first layer and why."""

import pytest

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.pairs import pattern_of
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

HEAD = {"type": "attention", "num_heads": 4, "qk_norm": "head"}
FULL = {"type": "attention", "num_heads": 4, "qk_norm": "full", "norm_position": "post"}
BLOCKS = {
    "attn": HEAD,
    "near": {**HEAD, "window": 8},
    "wide": {**HEAD, "window": 9},
    "plain": {"type": "attention", "num_heads": 4},
    "gated": {**HEAD, "qk_norm_zero_centered": True, "gate": "element"},
    "half": {**HEAD, "qk_norm_zero_centered": True, "gate": "element", "qkv_bias": True},
    "full": FULL,
    "part": {**FULL, "rotary_fraction": 0.5},
    "conv": {"type": "short_conv"},
    "long": {"type": "short_conv", "conv_kernel": 5},
    "gdn": {"type": "gated_deltanet", "num_heads": 4, "norm_eps": 1e-5},
    "own_eps": {"type": "gated_deltanet", "num_heads": 4, "norm_eps": 1e-3},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 48},
    "after": {"type": "swiglu", "ffn_hidden_size": 48, "norm_position": "post"},
    "ffn": {"type": "mlp", "ffn_hidden_size": 48},
    "alone": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 8},
    "biased": {
        "type": "moe",
        "num_experts": 4,
        "ffn_hidden_size": 8,
        "shared_ffn_hidden_size": 8,
        "shared_gate": True,
        "balance": "bias",
    },
}
ZERO = {"zero_centered_norms": True}
REFUSED = {
    "another mixer": ("lfm2", "conv mlp gdn mlp", {}, "layer 2 (gdn, gated_deltanet): expected short_conv or"),
    "another feed-forward layer": ("lfm2", "conv ffn", {}, "layer 1 (ffn, mlp): expected swiglu here"),
    "no pair": ("lfm2", "conv mlp attn", {}, "layer 2 (attn, attention): expected swiglu after it"),
    "a window": ("lfm2", "conv mlp near mlp", {}, "layer 2 (near, attention): its window is 8"),
    "no norm of queries": ("lfm2", "plain mlp", {}, "layer 0 (plain, attention): its qk_norm is 'none'"),
    "two kernels": ("lfm2", "conv mlp long mlp", {}, "layer 2 (long, short_conv): its conv_kernel is 5; expected 3"),
    "norms of the model": ("lfm2", "conv mlp", ZERO, "model.zero_centered_norms = true"),
    "plain norms": ("qwen3_next", "gated mlp", {}, "model.zero_centered_norms = false"),
    "a topology": ("llama", "attn mlp", {"residual": {"type": "sandwich"}}, "model.residual = {type: sandwich}"),
    "no gate": ("qwen3_next", "attn mlp", ZERO, "layer 0 (attn, attention): its qk_norm_zero_centered is false"),
    "half of the biases": ("qwen3_next", "half mlp", ZERO, "layer 0 (half, attention): it has qkv_bias without"),
    "no shared expert": ("qwen3_next", "gated alone", ZERO, "layer 1 (alone, moe): its shared_gate is false"),
    "a bias of the choice": ("qwen3_next", "gated biased", ZERO, "layer 1 (biased, moe): its balance is 'bias'"),
    "an epsilon": ("qwen3_next", "gdn mlp", ZERO, "layer 0 (gdn, gated_deltanet): its norm_eps is 1.0e-05"),
    "another epsilon": ("olmo_hybrid", "own_eps mlp full after", {}, "layer 0 (own_eps, gated_deltanet): expected"),
    "another window": ("qwen3", "near mlp wide mlp", {}, "layer 2 (wide, attention): its window is 9; expected 8"),
    "a norm after, for Qwen3": ("qwen3", "attn after", {}, "layer 1 (after, swiglu): its norm_position is 'post'"),
    "a norm of heads, for OLMo 2": ("olmo2", "attn mlp", {}, "layer 0 (attn, attention): its qk_norm is 'head'"),
    "a norm before": ("olmo_hybrid", "gdn mlp full mlp", {}, "layer 3 (mlp, swiglu): its norm_position is 'pre'"),
    "a norm after": ("olmo_hybrid", "gdn after full after", {}, "layer 1 (after, swiglu): its norm_position is 'post'"),
    "some channels rotate": ("olmo_hybrid", "gdn mlp part after", {}, "layer 2 (part, attention): only some"),
    "no attention": ("olmo_hybrid", "gdn mlp", {}, "without attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_says_which_layer_does_not_fit_and_why(case):
    architecture, pattern, keys, message = REFUSED[case]
    model = build({"hidden_size": 32, "vocab_size": 64, "blocks": BLOCKS, "pattern": pattern, **keys}, ModelConfig)
    with pytest.raises(UserError) as raised:
        ARCHITECTURES[architecture].to_theirs(model)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{architecture} cannot express ")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("ab", "a b"),
        ("abab", "2*(a b)"),
        ("abcb", "a b c b"),
        ("abcbabcb", "2*(a b c b)"),
        ("abababcbabababcb", "2*(a b a b a b c b)"),
    ],
)
def test_pattern_says_once_what_repeats(pairs, expected):
    assert pattern_of(list(zip(pairs[::2], pairs[1::2], strict=True))) == expected


def test_the_published_config_of_lfm2_is_known():
    """It has settings that transformers does not read, and earlier names of others."""
    settings = Settings({
        "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 2048, "block_ff_dim": 12288,
        "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5,
        "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3,
        "conv_bias": False, "conv_dim": 2048, "conv_dim_out": 2048, "conv_use_xavier_init": True, "eos_token_id": 7,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "norm_eps": 1e-5, "num_attention_heads": 32,
        "num_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_theta": 1000000.0,
        "theta": 1000000.0, "tie_embedding": True, "use_pos_enc": True, "vocab_size": 65536,
    })  # fmt: skip
    model = build(ARCHITECTURES["lfm2"].to_ours(settings), ModelConfig)
    settings.check_all_read()
    assert model.blocks["mlp"].inner_size == 8192
    assert [i for i, name in enumerate(model.layer_names[::2]) if name == "attn"] == [2, 5, 8, 10, 12, 14]
    assert model.tie_embeddings


def test_experts_of_qwen3_next_need_no_layers_where_all_are_dense():
    dense = {"hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
             "intermediate_size": 48, "num_experts": 8, "decoder_sparse_step": 5}  # fmt: skip
    model = build(ARCHITECTURES["qwen3_next"].to_ours(Settings(dense)), ModelConfig)
    assert model.layer_names == ("gdn", "mlp") * 3 + ("attn", "mlp")


def test_names_of_published_olmo_hybrids_are_read():
    """transformers reads them too, and writes others: of attention layers, and before that of gated DeltaNet."""
    model = build({"hidden_size": 32, "vocab_size": 64, "blocks": BLOCKS, "pattern": "gdn mlp full after"}, ModelConfig)
    architecture = ARCHITECTURES["olmo_hybrid"]
    written = {entry.name: entry for entry in architecture.table(model)}
    assert architecture.table_for(model, written) == list(written.values())
    published = {
        "model.layers.0.attention_layer_norm.weight": "layers.0.norm.weight",
        "model.layers.0.feedforward_layer_norm.weight": "layers.1.norm.weight",
        "model.layers.1.post_attention_layernorm.weight": "layers.2.norm.weight",
        "model.layers.1.post_feedforward_layernorm.weight": "layers.3.norm.weight",
    }
    in_memory = {
        "model.layers.0.input_layernorm.weight": "layers.0.norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "layers.1.norm.weight",
        **dict(list(published.items())[2:]),
    }
    for norms in (published, in_memory):
        names = {name for name in written if "layer_norm" not in name and "layernorm" not in name} | norms.keys()
        table = {entry.name: entry for entry in architecture.table_for(model, names)}
        assert table.keys() == names
        assert {name: table[name].parts for name in norms} == {name: (part,) for name, part in norms.items()}
