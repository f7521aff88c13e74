"""Initial values that depend on the seed and the parameter's name alone: the same in every parallel layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import WHOLE, Shards, TensorSpec

SMALLEST_STEP = 1e-4  # floor of Mamba-2's initial step sizes, as in its authors' code


def _log_uniform(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    low, high = math.log(spec.init.low), math.log(spec.init.high)
    return torch.rand(spec.shape, generator=generator).mul_(high - low).add_(low).exp_()


def _uniform(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    return torch.rand(spec.shape, generator=generator).mul_(spec.init.high - spec.init.low).add_(spec.init.low)


def _inverse_softplus(steps: Tensor) -> Tensor:
    return steps + torch.log(-torch.expm1(-steps))


def _normal(std: float) -> Callable[[TensorSpec, torch.Generator], Tensor]:
    return lambda spec, generator: torch.randn(spec.shape, generator=generator).mul_(std)


def _ramp(spec: TensorSpec, _: torch.Generator) -> Tensor:
    way = torch.linspace(0, 1, spec.shape[0]).pow_(spec.init.power).mul_(spec.init.high - spec.init.low)
    return way.add_(spec.init.low).view(-1, *[1] * (len(spec.shape) - 1)).expand(spec.shape)


def _rules(config: ModelConfig) -> dict[str, Callable[[TensorSpec, torch.Generator], Tensor]]:
    """How each kind of `Init` draws. Projections into the residual stream shrink with its number of additions."""
    return {
        "input": _normal(config.init_std),
        "embedding": _normal(config.init_std),
        "output": _normal(config.init_std / math.sqrt(len(config.layer_names))),
        "ones": lambda spec, _: torch.ones(spec.shape),
        "zeros": lambda spec, _: torch.zeros(spec.shape),
        "uniform": _uniform,
        "log_uniform": lambda spec, generator: _uniform(spec, generator).log_(),
        "dt_bias": lambda spec, generator: _inverse_softplus(_log_uniform(spec, generator).clamp_min_(SMALLEST_STEP)),
        "normal": lambda spec, generator: _normal(spec.init.high)(spec, generator).add_(spec.init.low),
        "ramp": _ramp,
        "log_count": lambda spec, _: torch.arange(1.0, spec.shape[-1] + 1).log_().expand(spec.shape),
    }


def initial_value(config: ModelConfig, name: str, spec: TensorSpec, seed: int) -> Tensor:
    """One parameter's whole, unsharded initial value in float32."""
    return _rules(config)[spec.init.kind](spec, _generator(seed, name))


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, shards: Shards = WHOLE) -> None:
    """Fill the model's parameters in place: all of it or some stage, whose pieces `shards` names."""
    specs = model_tensors(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(specs[name].shard(initial_value(config, name, specs[name], seed), shards))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
