"""Models of megatron-core on a CPU, as its own specs make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.convert.megatron.cases import SEQ_LEN, VOCAB, Case

EXPERTS = "expert_model_parallel_size"
LAYOUT: dict[str, int] = {}  # sizes of the groups that exist


def build(case: Case) -> nn.Module:
    """This process's part of a model."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe import moe_utils

    moe_utils.te_general_gemm = None  # which megatron-core leaves undefined without Transformer Engine
    ends = {
        "pre_process": parallel_state.is_pipeline_first_stage(),
        "post_process": parallel_state.is_pipeline_last_stage(),
    }
    options = {"vocab_size": VOCAB, "max_sequence_length": SEQ_LEN, **ends, **case.model}
    torch.manual_seed(1)
    if case.pattern is None:
        return _gpt(_config(case), options)
    return _hybrid(_config(case), {**options, "hybrid_override_pattern": case.pattern})


def _config(case: Case) -> Any:
    from megatron.core.activations import squared_relu
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 48,
        "use_cpu_initialization": True,
        "params_dtype": torch.float32,
        "pipeline_dtype": torch.float32,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "add_bias_linear": False,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": {"silu": torch.nn.functional.silu, "squared_relu": squared_relu}[case.activation],
        "use_mamba_mem_eff_path": False,
    }
    sizes = {name: size for name, size in LAYOUT.items() if name != EXPERTS or "num_moe_experts" in case.config}
    return TransformerConfig(**settings | sizes | case.config)


def _gpt(config: Any, options: dict[str, Any]) -> nn.Module:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    return GPTModel(config, spec, **options)


def _hybrid(config: Any, options: dict[str, Any]) -> nn.Module:
    import megatron.core.ssm.mamba_block as block
    from megatron.core.models.mamba.mamba_model import MambaModel
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    block.TENorm = WrappedTorchNorm  # which it names itself, as no part of the spec
    return MambaModel(config, stack_spec(), **options)


def stack_spec() -> Any:
    """The layers of megatron.core.models.mamba.mamba_layer_specs, without Transformer Engine's modules."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm as norm
    from megatron.core.transformer.transformer_layer import (
        MoETransformerLayer,
        TransformerLayer,
        TransformerLayerSubmodules,
    )

    mixer = MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear)
    mamba = MambaLayerSubmodules(
        norm=norm,
        mixer=ModuleSpec(module=MambaMixer, params={"use_mem_eff_path": False}, submodules=mixer),
        mamba_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"},
    )
    attention = TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=ModuleSpec(
            module=SelfAttention,
            params={"attn_mask_type": AttnMaskType.causal},
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnParallelLinear, core_attention=DotProductAttention, linear_proj=RowParallelLinear
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
    )
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    mlp = TransformerLayerSubmodules(
        pre_mlp_layernorm=norm,
        mlp=ModuleSpec(module=MLP, submodules=linears),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
    )
    moe = TransformerLayerSubmodules(
        pre_mlp_layernorm=norm,
        mlp=get_moe_module_spec(use_te=False, num_experts=8, moe_grouped_gemm=False),
        mlp_bda=get_bias_dropout_add,
    )
    return ModuleSpec(
        module=MambaStack,
        submodules=MambaStackSubmodules(
            mamba_layer=ModuleSpec(module=MambaLayer, submodules=mamba),
            attention_layer=ModuleSpec(module=TransformerLayer, submodules=attention),
            mlp_layer=ModuleSpec(module=MLPLayer, submodules=mlp),
            moe_layer=ModuleSpec(module=MoETransformerLayer, submodules=moe),
        ),
    )
