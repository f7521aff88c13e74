"""Reject configs that cannot fit into memory, before anything is allocated."""

from __future__ import annotations

import torch

from hybridtron.accounting.describe import FORMAT_BYTES, describe
from hybridtron.errors import UserError
from hybridtron.reporting.numbers import si
from hybridtron.training.config import RunConfig

BYTES_PER_TOKEN_ID = 8


def require_memory(config: RunConfig, world_size: int, available: int | None = None) -> None:
    """Raise UserError where even the least that a process needs exceeds `available` bytes, by default this machine's.

    The least: its share of the weights, were everything cut over all processes, or its share of the token ids and of
    one layer's output. Gradients, optimizer state and activations come on top; whatever could work passes.
    """
    available = machine_memory() if available is None else available
    number, train, model = FORMAT_BYTES[config.precision.parameter_format], config.train, config.model
    parameters = describe(model, config.data.seq_len).total
    weights = parameters * number // world_size
    if weights > available:
        raise UserError(
            f"model.hidden_size = {model.hidden_size}: the model has {parameters:.3g} parameters, whose weights alone "
            f"take {si(weights)}B per process; expected at most the {si(available)}B of this machine"
        )
    tokens = train.global_batch_size * config.data.seq_len * BYTES_PER_TOKEN_ID // world_size
    activations = train.micro_batch_size * config.data.seq_len * model.hidden_size * number // world_size
    for key, needed in (("global_batch_size", tokens), ("micro_batch_size", activations)):
        if needed > available:
            raise UserError(
                f"train.{key} = {getattr(train, key)}: one batch takes at least {si(needed)}B per process; expected "
                f"at most the {si(available)}B of this machine"
            )


def machine_memory() -> int:
    """Return the bytes of the GPU that CUDA uses, else of the machine with its swap space."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().total + psutil.swap_memory().total
