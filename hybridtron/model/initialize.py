"""Initial values that depend on the seed and the parameter's name alone: the same in every parallel layout."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import WHOLE, Init, Shards, TensorSpec


def initial_value(config: ModelConfig, name: str, spec: TensorSpec, seed: int) -> Tensor:
    """Return one parameter's whole, unsharded initial value in float32."""
    generator = _generator(seed, name)
    if isinstance(spec.init, Init):
        return _draw(spec.init, spec.shape, generator, config)
    return spec.init(spec.shape, generator)


def _draw(init: Init, shape: tuple[int, ...], generator: torch.Generator, config: ModelConfig) -> Tensor:
    """Draw by the kind of `init`; projections into the residual stream shrink with its number of additions."""
    match init.kind:
        case "input" | "embedding":
            return torch.randn(shape, generator=generator).mul_(config.init_std)
        case "output":
            return torch.randn(shape, generator=generator).mul_(config.init_std / math.sqrt(len(config.layer_names)))
        case "normal":
            return torch.randn(shape, generator=generator).mul_(init.high).add_(init.low)
        case "ones":
            return torch.ones(shape)
        case "zeros":
            return torch.zeros(shape)
    uniform = torch.rand(shape, generator=generator).mul_(init.high - init.low).add_(init.low)
    return uniform.log_() if init.kind == "log_uniform" else uniform


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, shards: Shards = WHOLE) -> None:
    """Fill the parameters of the model, or of a stage of it, in place; `shards` are those that the process holds."""
    specs = model_tensors(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(specs[name].shard(initial_value(config, name, specs[name], seed), shards))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
