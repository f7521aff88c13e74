"""Initial values that depend on the seed and the parameter's name alone: the same in every parallel layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import TensorSpec

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
    }


def initial_values(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and whole, unsharded initial float32 value, one after another."""
    rules = _rules(config)
    for name, spec in model_tensors(config).items():
        yield name, rules[spec.init.kind](spec, _generator(seed, name))


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, rank: int = 0, tensor_parallel_size: int = 1) -> None:
    """Fill the model's parameters in place; `rank` is the tensor-parallel rank whose pieces this model holds."""
    specs, parameters = model_tensors(config), dict(model.named_parameters())
    for name, full in initial_values(config, seed):
        parameters[name].copy_(specs[name].shard(full, rank, tensor_parallel_size))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
