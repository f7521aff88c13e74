"""From a resolved config to a model on its backend, and to an engine that trains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridtron.backends.base import Backend
from hybridtron.distributed.groups import Place
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.train.config import RunConfig

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from hybridtron.distributed.engine import Engine


def build_model(config: RunConfig, place: Place) -> tuple[LanguageModel, TransformerConfig]:
    """The model with its initial weights on this process's device."""
    from hybridtron.distributed.engine import megatron_config

    model = config.model
    megatron = megatron_config(model.hidden_size, len(model.layer_names), config.parallel, config.precision)
    backend: Backend
    if model.backend == "torch":
        from hybridtron.backends.torch import TorchBackend

        backend = TorchBackend(megatron.params_dtype, place.device, model.norm_eps)
    else:
        from hybridtron.backends.megatron import MegatronBackend

        backend = MegatronBackend(megatron, place.tensor_group, place.device, model.norm_eps)
    built = LanguageModel(model, backend)
    initialize(built, model, config.seed, place.tensor_rank, place.tensor_size)
    return built, megatron


def build_engine(config: RunConfig, place: Place) -> tuple[Engine, LanguageModel]:
    from hybridtron.distributed.engine import AdamW, Engine

    model, megatron = build_model(config, place)
    optimizer = config.optimizer
    adamw = AdamW(optimizer.weight_decay, optimizer.betas, optimizer.eps, optimizer.clip_grad)
    return Engine(model, model_tensors(config.model), megatron, place, adamw, config.train.z_loss), model
