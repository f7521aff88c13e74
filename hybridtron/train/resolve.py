"""What the config leaves to be derived: the vocabulary, and the checks that need it or the number of processes."""

from __future__ import annotations

from hybridtron.data.tokenizer import Tokenizer
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.errors import UserError
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import indivisible
from hybridtron.train.config import RunConfig

VOCABULARY_MULTIPLE = 64  # rows of the embedding: divides over any usual number of processes and suits matrix units


def resolve(config: RunConfig) -> RunConfig:
    """The config with its vocabulary size filled in and its layout checked; raises UserError.

    The tokenizer's files must exist; tokens need not yet.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    size = config.model.vocab_size or -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    _check_vocabulary(size, tokenizer)
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})
    _check_layout(config)
    return config


def data_parallel_size(config: RunConfig, world_size: int) -> int:
    """Copies of the model among world_size processes; UserError where that does not come out even."""
    tensor = config.parallel.tensor
    if world_size % tensor:
        below, above = world_size // tensor * tensor, (world_size // tensor + 1) * tensor
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(f"--nproc = {world_size}: expected a multiple of parallel.tensor {tensor} (nearest: {nearest})")
    copies = world_size // tensor
    portion = config.train.micro_batch_size * copies
    if config.train.global_batch_size % portion:
        raise UserError(
            f"train.global_batch_size = {config.train.global_batch_size}: expected a multiple of micro_batch_size "
            f"{config.train.micro_batch_size} x {copies} data-parallel processes = {portion}"
        )
    return copies


def _check_vocabulary(size: int, tokenizer: Tokenizer) -> None:
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {size}: expected at least {tokenizer.vocab_size}, as tokenizer {tokenizer.name} has"
        )


def _check_layout(config: RunConfig) -> None:
    tensor = config.parallel.tensor
    if tensor == 1:
        return
    for name, block in config.model.blocks.items():
        if not block.capabilities.tensor or (config.parallel.sequence and not block.capabilities.sequence):
            raise UserError(f"parallel.tensor = {tensor}: block {name} of type {block.type} cannot be cut; expected 1")
    for part in indivisible(model_tensors(config.model), tensor):
        usable = ", ".join(str(n) for n in range(1, part.units + 1) if part.units % n == 0)
        raise UserError(
            f"parallel.tensor = {tensor}: {part.key} gives {part.units} {part.name}, which does not divide into "
            f"{tensor} (possible: {usable})"
        )
