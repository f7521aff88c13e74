"""A training step of ours: the engine of `hybridtron train`, on random tokens."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import nn

from gpu_parts.timing import Step
from hybridtron.data.loaders.batches import MicroBatch
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initial_value
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import Shards
from hybridtron.training import build
from hybridtron.training.config import RunConfig

SMALL = 1 << 20  # elements; larger tensors are matrices, which are drawn on the device


def build_own(config: RunConfig, parallel_context: ParallelContext) -> Engine:
    """Build the engine; matrices are drawn on the device, since a CPU takes a minute for a billion values."""
    with patch.object(build, "initialize", _fill):
        return build.build_engine(config, parallel_context)[0]


@torch.no_grad()
def _fill(model: nn.Module, config: ModelConfig, seed: int, shards: Shards) -> None:
    specs = model_tensors(config)
    for name, parameter in model.named_parameters():
        if parameter.numel() > SMALL:
            parameter.normal_(std=config.init_std)
        else:
            parameter.copy_(initial_value(config, name, specs[name], seed, shards))


def train_step(engine: Engine, config: RunConfig) -> Step:
    """Return a step over all micro-batches of a global batch."""
    size = (config.train.micro_batch_size, config.data.seq_len + 1)
    count = config.train.global_batch_size // config.train.micro_batch_size
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(config.model.vocab_size, size, generator=generator) for _ in range(count)]
    batches = [MicroBatch(each[:, :-1].contiguous(), each[:, 1:].contiguous()) for each in ids]

    def step() -> None:
        result = engine.train_step(batches, 1e-4)
        if not result.applied:
            raise RuntimeError(f"loss {result.loss}, norm of gradients {result.grad_norm}: not finite")

    return step
