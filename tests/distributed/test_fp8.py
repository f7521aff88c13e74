"""Which processes share the scales of emulated FP8."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from hybridtron.distributed.fp8 import FP8Emulation
from hybridtron.tensors import WHOLE, Init, TensorSpec


def test_the_channels_of_an_expert_share_its_scales():
    """Also those that lie in processes with other micro-batches, which no group of tensor parallelism joins."""
    groups = {name: SimpleNamespace(name=name, size=lambda size=size: size) for name, size in SIZES.items()}
    parallel_context: Any = SimpleNamespace(
        device=torch.device("cpu"),
        shards=WHOLE,
        tensor_group=groups["tensor"],
        context_group=groups["context"],
        expert_groups=SimpleNamespace(tensor=groups["expert_tensor"]),
    )
    linear = nn.Module()
    experts: Any = nn.Module()
    experts.fp8 = {}
    chunk = nn.ModuleDict({"dense": linear, "moe": experts})
    specs = {
        "dense": TensorSpec((16, 16), Init("input")),
        "moe.down": TensorSpec((2, 16, 16), Init("input"), experts=True),
    }
    FP8Emulation([chunk], specs, "tensorwise", parallel_context)
    assert reduced(linear.fp8.weight, 1) == ["context"]
    assert reduced(experts.fp8["down"].weight, 2) == ["context", "expert_tensor"]


SIZES = {"tensor": 1, "context": 2, "expert_tensor": 2}


def reduced(operand, weights):
    """Groups over which the amax of these weights is reduced."""
    seen = []
    with patch.object(dist, "all_reduce", lambda amax, op, group: seen.append(group.name)):
        operand.quantize([torch.ones(16, 16)] * weights, False)
    return seen
