"""The share of a model's tensors that one process holds."""

from __future__ import annotations

import math
from typing import NamedTuple

from hybridtron.accounting.describe import FORMAT_BYTES
from hybridtron.tensors import Shard, Shards, TensorSpec
from hybridtron.training.config import RunConfig

GRADIENT_BYTES = 4
STATE_BYTES = 4  # of one moment, an fp32 copy or an average
FLOAT32 = "fp32"


class Replicas(NamedTuple):
    """How many processes hold the same piece of a tensor: data and context parallelism."""

    dense: int
    experts: int

    @classmethod
    def of_layout(cls, config: RunConfig, copies: int) -> Replicas:
        """Count the replicas in a layout with so many copies of the model."""
        parallel = config.parallel
        dense = copies * parallel.context
        return cls(dense, dense * parallel.tensor // (parallel.expert * parallel.expert_tensor))

    def of(self, spec: TensorSpec) -> int:
        """Return the number of replicas of a tensor."""
        return self.experts if spec.experts else self.dense


def first_shards(config: RunConfig) -> Shards:
    """Return the shards that the first process holds."""
    parallel = config.parallel
    return Shards(Shard(0, parallel.tensor), Shard(0, parallel.expert), Shard(0, parallel.expert_tensor))


def num_shards(spec: TensorSpec, config: RunConfig) -> int:
    """Count the distinct shards of a parameter."""
    return math.prod(shard.size for _, shard in spec.cuts(first_shards(config)))


def value_bytes(config: RunConfig, spec: TensorSpec) -> int:
    """Return the bytes of one element of a parameter."""
    return FORMAT_BYTES[FLOAT32 if spec.keeps_float32 else config.precision.parameter_format]


def optimizer_bytes(config: RunConfig, spec: TensorSpec) -> int:
    """Return the bytes that the optimizer keeps of one element of a parameter."""
    if not spec.trained:
        return 0
    moments = 1 if uses_muon(config, spec) else 2
    copies = value_bytes(config, spec) < STATE_BYTES
    return STATE_BYTES * (moments + copies + (config.optimizer.ema is not None))


def uses_muon(config: RunConfig, spec: TensorSpec) -> bool:
    """Return whether Muon updates a parameter."""
    return config.optimizer.type == "muon" and spec.takes_muon
