"""The optimizer of an engine: megatron-core's AdamW, with Muon beside it for the matrices of linears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from hybridtron.distributed.optimizer.gradient_clipping import ClipGroup
from hybridtron.distributed.optimizer.muon import Muon, MuonBesideAdamW
from hybridtron.distributed.process_groups.groups import ParallelContext


@dataclass(frozen=True)
class AdamW:
    """What the optimizer needs besides the learning rate, which every step is given."""

    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_grad: float  # 0: gradients are not clipped
    clip_groups: Sequence[ClipGroup] = ()  # limits of groups of parameters, before that of all
    muon: Muon | None = None  # for the parameters that take it
    ema: tuple[float, int] | None = None  # decay of an average of the weights, and updates between its own


def make_optimizer(
    replicas: Sequence[nn.Module],
    config: TransformerConfig,
    settings: AdamW,
    distributed: bool,
    parallel_context: ParallelContext,
) -> ChainedOptimizer:
    """Build the optimizer of data-parallel replicas whose parameters have the attributes `spec` and `decay`.

    `distributed`: each data-parallel process keeps and updates a part of the state.
    """
    overrides: dict[ParamKey, Any] = {
        ParamKey(predicate=ParamPredicate("undecayed", lambda parameter: not parameter.decay)): {"wd_mult": 0.0}
    }
    if settings.muon:
        overrides[ParamKey(predicate=ParamPredicate("muon", lambda parameter: parameter.spec.takes_muon))] = {
            "muon": True
        }
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            params_dtype=config.params_dtype,
            bf16=config.bf16,
            use_distributed_optimizer=distributed,
        ),
        list(replicas),
        config_overrides=overrides,
        use_gloo_process_groups=False,
    )
    for each in optimizer.chained_optimizers:
        if isinstance(each.optimizer, torch.optim.AdamW):  # one pass over the state instead of ten
            for group in each.optimizer.param_groups:
                group["fused"] = True
        if settings.muon:
            each.optimizer = MuonBesideAdamW(each, settings.muon, parallel_context, config.params_dtype)
    return optimizer


def set_rates(optimizer: ChainedOptimizer, settings: AdamW, lr: float) -> None:
    """Set the learning rate of the next update, and what else the config says of it.

    All from the config, since a loaded checkpoint brings the values that it was saved with.
    """
    for group in optimizer.param_groups:
        ratio = settings.muon.lr_ratio if settings.muon and group.get("muon") else 1.0
        group["lr"], group["betas"], group["eps"] = lr * ratio, settings.betas, settings.eps
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
