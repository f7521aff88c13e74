"""Equal weights give the logits of Hugging Face's models."""

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig
from tests.model.huggingface import gpt_oss_attention_state, imported, load

BOUND = 1e-4


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial zeros and ones, so that every one of them matters to the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "A_log" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
            elif parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.size(-1) ** -0.5)
    return model.eval()


def worst(ours: torch.nn.Module, theirs: torch.nn.Module, vocab_size: int, seq_len: int) -> float:
    tokens = torch.randint(vocab_size, (2, seq_len), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((ours.logits(tokens) - theirs(tokens).logits).abs().max())


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("seq_len", [1, 37])
def test_llama(num_kv_heads, seq_len, tmp_path):
    theirs = randomised(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=96,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=num_kv_heads,
                rope_theta=10000.0,
                rms_norm_eps=1e-5,
                tie_word_embeddings=False,
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("seq_len", [1, 16, 37])
def test_mamba2(num_groups, seq_len, tmp_path):
    theirs = randomised(
        Mamba2ForCausalLM(
            Mamba2Config(
                vocab_size=96,
                hidden_size=64,
                num_hidden_layers=2,
                expand=2,
                head_dim=16,
                num_heads=8,
                state_size=24,
                n_groups=num_groups,
                conv_kernel=4,
                chunk_size=16,
                layer_norm_epsilon=1e-5,
                tie_word_embeddings=False,
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("seq_len", [1, 37])
def test_nemotron_h(seq_len, tmp_path):
    """A hybrid: Mamba-2, attention without positions, squared-ReLU MLP."""
    kinds = "M-M*-"
    names = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
    theirs = randomised(
        NemotronHForCausalLM(
            NemotronHConfig(
                vocab_size=96,
                hidden_size=64,
                intermediate_size=96,
                layers_block_type=[names[kind] for kind in kinds],
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                mamba_num_heads=8,
                mamba_head_dim=16,
                ssm_state_size=24,
                n_groups=2,
                chunk_size=16,
                layer_norm_epsilon=1e-5,
                tie_word_embeddings=False,
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("seq_len", [1, 9, 60])
def test_mistral(seq_len, tmp_path):
    """A sliding window of eight tokens."""
    shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    theirs = randomised(
        MistralForCausalLM(
            MistralConfig(
                **shape,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                sliding_window=8,
                rms_norm_eps=1e-5,
                attn_implementation="eager",
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("seq_len", [1, 9, 60])
def test_gpt_oss_attention(seq_len):
    """A sink per head, a sliding window in one layer of two; the experts' last projections are zero."""
    theirs = randomised(
        GptOssForCausalLM(
            GptOssConfig(
                vocab_size=96,
                hidden_size=64,
                intermediate_size=16,
                num_hidden_layers=2,
                num_local_experts=2,
                num_experts_per_tok=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                attn_implementation="eager",
            )
        )
    )
    state = theirs.state_dict()
    for name, tensor in state.items():
        if "experts.down_proj" in name or "o_proj.bias" in name:
            tensor.zero_()
    attention = {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "sinks": True, "qkv_bias": True}
    config = build(
        {
            "hidden_size": 64,
            "vocab_size": 96,
            "blocks": {"near": {**attention, "window": 8}, "far": attention},
            "pattern": "near far",
        },
        ModelConfig,
    )
    assert worst(load(config, gpt_oss_attention_state(state, 2)), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("seq_len", [1, 37, 70])
def test_mamba(seq_len, tmp_path):
    theirs = randomised(
        MambaForCausalLM(
            MambaConfig(
                vocab_size=96,
                hidden_size=64,
                num_hidden_layers=2,
                state_size=8,
                layer_norm_epsilon=1e-5,
                tie_word_embeddings=False,
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND


@pytest.mark.parametrize("seq_len", [1, 37, 70])
def test_qwen3_next_without_attention(seq_len, tmp_path):
    """At the model's own epsilon, norms magnify the rounding of small outputs: with other weights than these both sides
    are up to 3e-4 from float64, each as far as the other."""
    torch.manual_seed(2)
    heads = {"heads": 2, "value_heads": 4, "key_dim": 12, "head_dim": 16}
    theirs = randomised(
        Qwen3NextForCausalLM(
            Qwen3NextConfig(
                vocab_size=96,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                layer_types=["linear_attention"] * 2,
                use_cache=False,  # which asks for a layer of attention
                mlp_only_layers=[0, 1],
                linear_num_key_heads=heads["heads"],
                linear_num_value_heads=heads["value_heads"],
                linear_key_head_dim=heads["key_dim"],
                linear_value_head_dim=heads["head_dim"],
                rms_norm_eps=1e-6,
            )
        )
    )
    assert worst(imported(theirs, tmp_path), theirs, 96, seq_len) < BOUND
