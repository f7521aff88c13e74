"""The exponential moving average of a model's weights, kept by each process for what its optimizer updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor

from hybridtron.checkpoint_keys import EMA
from hybridtron.distributed.data_parallel.parameter_gathers import ParameterGathers
from hybridtron.distributed.optimizer.held_parameters import held_parameters
from hybridtron.distributed.optimizer.state import LocalTensor


class WeightAverage:
    """average = decay average + (1 - decay) weights after every `every`-th update, in float32.

    It begins with the weights before the first update. Parameters that are not trained have no average.
    """

    def __init__(
        self,
        optimizer: ChainedOptimizer,
        replicas: Sequence[DistributedDataParallel],
        gathers: ParameterGathers,
        decay: float,
        every: int,
    ) -> None:
        self.optimizer, self.replicas, self.gathers, self.decay, self.every = optimizer, replicas, gathers, decay, every
        self.updates = 0  # that the optimizer has made
        self.averages: list[Tensor] = []
        held = [(each, *one) for each in optimizer.chained_optimizers for one in held_parameters(each)]
        self.places: list[tuple[Any, int, bool]] = [
            (parameter, start, isinstance(each, DistributedOptimizer)) for each, parameter, _, start in held
        ]
        self.weights: list[Tensor] = [main.data for _, _, main, _ in held]

    def begin(self) -> None:
        """Begin again with the weights of now."""
        if self.averages:
            torch._foreach_copy_(self.averages, self.weights)
        else:
            self.averages = [weight.clone() for weight in self.weights]

    def require_begun(self) -> None:
        """Begin with the weights of now, where nothing was averaged or loaded yet."""
        if not self.averages:
            self.begin()

    @torch.no_grad()
    def after_update(self) -> None:
        """Take the weights of now into the average, if it is their turn."""
        self.updates += 1
        if self.updates % self.every == 0:
            torch._foreach_lerp_(self.averages, self.weights, 1 - self.decay)

    def local_tensors(self) -> Iterator[LocalTensor]:
        """Yield every tensor of the average that this process holds."""
        self.require_begun()
        for (parameter, start, is_sharded), average in zip(self.places, self.averages, strict=True):
            yield LocalTensor(EMA, parameter, average, start, is_sharded)

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Exchange weights and average inside the block. All processes call this."""
        self.require_begun()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange what the optimizer holds with the average, and give the model's parameters the new values."""
        self.gathers.wait()
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        is_sharded = False
        for each in self.optimizer.chained_optimizers:
            if isinstance(each, (DistributedOptimizer, Float16OptimizerWithFloat16Params)):
                each._copy_main_params_to_model_params()
            is_sharded = is_sharded or isinstance(each, DistributedOptimizer)
        if is_sharded:
            for replica in self.replicas:
                replica.start_param_sync(force_sync=True)
