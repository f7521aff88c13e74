"""megatron-core's own models at the shapes of a slice, trained by the same engine: the same optimizer and schedule."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_parts.families import ATTENTION, Slice
from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from hybridtron.distributed.engine import AdamW, Engine
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.ops.vendor import usable
from hybridtron.tensors import Init, TensorSpec
from hybridtron.training.config import RunConfig


class Wrapped(nn.Module):
    """A model of megatron-core as the engine wants it: (tokens, labels) -> loss and log partition function [s, b]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def set_input_tensor(self, tensor: Any) -> None:
        """Do nothing: there is one stage."""

    def forward(self, tokens: Tensor, labels: Tensor, documents: None = None) -> tuple[Tensor, Tensor]:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        with cuda_calls_on_cpu():  # the engine runs models outside it, but this one names CUDA
            nll = self.model(tokens, positions, None, labels=labels).transpose(0, 1)
        return nll, torch.zeros_like(nll)


def transformer_config(config: RunConfig, layers: int, fp8: str | None, on_cuda: bool) -> Any:
    """Build megatron-core's config of the slice, with the fusions that its documentation advises."""
    from megatron.core.transformer import TransformerConfig

    blocks, hidden = config.model.blocks, config.model.hidden_size
    mamba, attn, mlp = (_keys(blocks[name]) for name in ("mamba", "attn", "mlp"))
    dtype = torch.bfloat16 if config.precision.format != "fp32" else torch.float32
    return TransformerConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=mlp["ffn_hidden_size"],
        num_attention_heads=attn["num_heads"],
        num_query_groups=attn["num_kv_heads"],
        normalization="RMSNorm",
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        bias_activation_fusion=on_cuda,
        bias_dropout_fusion=on_cuda,
        apply_rope_fusion=on_cuda,
        masked_softmax_fusion=False,
        cross_entropy_loss_fusion=on_cuda,
        gradient_accumulation_fusion=find_spec("fused_weight_gradient_mlp_cuda") is not None,  # apex's
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        fp8="hybrid" if fp8 else None,
        fp8_recipe=fp8 or "delayed",
        use_cpu_initialization=not on_cuda,
        is_hybrid_model=True,
        mamba_state_dim=mamba["state_dim"],
        mamba_head_dim=mamba["head_dim"],
        mamba_num_groups=mamba["num_groups"],
        mamba_num_heads=2 * hidden // mamba["head_dim"],
    )


def _keys(block: Any) -> dict[str, Any]:
    keys: dict[str, Any] = block.model_dump()
    return keys


def build_megatron(part: Slice, config: RunConfig, fp8: str | None, parallel_context: ParallelContext) -> Engine:
    """Build GPTModel for a slice of attention, MambaModel for a hybrid one, and the engine that trains it."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    on_cuda = parallel_context.device.type == "cuda"
    usable("mamba_ssm")  # imports it as ours do, with the results of autotuning kept, before megatron-core does
    model_parallel_cuda_manual_seed(1234)
    attention = (part.pattern, part.letters) == ATTENTION
    count = part.letters.count("*") if attention else len(part.letters)
    megatron = transformer_config(config, count, fp8, on_cuda)
    sizes = {"vocab_size": config.model.vocab_size, "max_sequence_length": config.data.seq_len}
    model: nn.Module
    if attention:
        megatron.is_hybrid_model = False
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt import gpt_layer_specs as specs

        layer = (
            specs.get_gpt_layer_with_transformer_engine_spec()
            if on_cuda
            else specs.get_gpt_layer_local_spec(normalization="RMSNorm")
        )
        model = GPTModel(megatron, layer, position_embedding_type="rope", **sizes)
    else:
        from megatron.core.models.mamba import MambaModel
        from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec

        pattern = {"hybrid_override_pattern": part.letters, "position_embedding_type": "rope"}
        model = MambaModel(megatron, mamba_stack_spec, **pattern, **sizes)
    wrapped = Wrapped(model.to(parallel_context.device, megatron.params_dtype))
    declared = {
        name: TensorSpec(tuple(parameter.shape), Init("zeros"), decay=parameter.dim() > 1)
        for name, parameter in wrapped.named_parameters()
    }
    optimizer = AdamW(0.1, (0.9, 0.95), 1e-8, 1.0)
    return Engine([wrapped], declared, megatron, parallel_context, optimizer)
