"""Derive the vocabulary size of a config, and check what depends on it or on the number of processes."""

from __future__ import annotations

import math

from hybridtron.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from hybridtron.errors import UserError
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import TensorSpec, indivisible
from hybridtron.training.config import RunConfig, multiples
from hybridtron.training.validation.alignment import check_alignment
from hybridtron.training.validation.cuda_graphs import check_cuda_graphs

LARGEST_DIVISOR = 10_000  # that a message looks for; more processes than this share nothing
VOCABULARY_MULTIPLE = 64  # rows of the embedding: divides over any usual number of processes and suits matrix units


def resolve(config: RunConfig) -> RunConfig:
    """Fill in the vocabulary size and check the layout of a config. Raises UserError where that fails.

    The tokenizer's files must exist; tokens need not yet.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    size = config.model.vocab_size or -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    _check_vocabulary(size, tokenizer)
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})
    check_layout(config)
    check_alignment(config)
    check_cuda_graphs(config)
    return config


def data_parallel_size(config: RunConfig, world_size: int, size_name: str = "world_size") -> int:
    """Return the number of copies of the model in world_size processes. Raises UserError where that is uneven."""
    parallel = config.parallel
    size = parallel.model_size
    if world_size % size:
        keys = [key for key in ("tensor", "context", "pipeline") if getattr(parallel, key) > 1]
        product = " x ".join(f"{'' if i else 'parallel.'}{key} {getattr(parallel, key)}" for i, key in enumerate(keys))
        product += f" = {size}" if len(keys) > 1 else ""
        raise UserError(f"{size_name} = {world_size}: expected a multiple of {product} ({multiples(world_size, size)})")
    copies = world_size // size
    if parallel.data not in (None, copies):
        raise UserError(
            f"parallel.data = {parallel.data}: expected {copies}, as {world_size} processes make with {size} for each "
            "copy of the model"
        )
    experts = parallel.expert * parallel.expert_tensor
    stage = world_size // parallel.pipeline
    if stage % experts:
        raise UserError(
            f"parallel.expert = {parallel.expert}: expected expert x expert_tensor = {experts} to divide the {stage} "
            f"processes of a pipeline stage (tensor x context x data; possible: {_divisors(stage)})"
        )
    _check_batches(config, copies)
    return copies


def _check_batches(config: RunConfig, copies: int) -> None:
    """Raise UserError where a global batch cannot be divided evenly over so many copies of the model."""
    parallel, train = config.parallel, config.train
    portion = train.micro_batch_size * copies
    stages = enumerate(train.batch_warmup)
    sizes = {f"batch_warmup[{i}].global_batch_size": stage.global_batch_size for i, stage in stages}
    sizes = {"global_batch_size": train.global_batch_size, **sizes}
    common = math.gcd(*sizes.values())
    for key, size in sizes.items():
        if size % portion:
            share = 0 if common % copies else math.gcd(common // copies, train.micro_batch_size)
            smaller = f", or micro_batch_size {share}" if share else ""
            raise UserError(
                f"train.{key} = {size}: expected a multiple of micro_batch_size {train.micro_batch_size} x {copies} "
                f"data-parallel processes = {portion} ({multiples(size, portion)}{smaller})"
            )
        micro_batches = size // portion
        if parallel.virtual_pipeline > 1 and micro_batches % parallel.pipeline:
            raise UserError(
                f"parallel.virtual_pipeline = {parallel.virtual_pipeline}: each process has {micro_batches} "
                f"micro-batches per step; expected a multiple of parallel.pipeline {parallel.pipeline} for the "
                f"interleaved schedule (train.{key}, {multiples(size, portion * parallel.pipeline)}), or 1"
            )


def _check_vocabulary(size: int, tokenizer: Tokenizer) -> None:
    """Raise UserError where the tokenizer has more tokens than the model."""
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {size}: expected at least {tokenizer.vocab_size}, as tokenizer {tokenizer.name} has"
        )


def check_layout(config: RunConfig) -> None:
    """Raise UserError where a block does not support the layout of `parallel`."""
    parallel, model = config.parallel, config.model
    specs = model_tensors(model)
    blocks = {name: model.blocks[name] for name in model.used_blocks}
    everything = {name: block.tensors() for name, block in blocks.items()}
    everything["embedding"] = {"embedding.weight": specs["embedding.weight"]}
    for name, block in blocks.items():
        wanted = {
            "tensor": parallel.tensor > 1,
            "sequence": parallel.sequence,
            "context": parallel.context > 1,
        }
        for key, used in wanted.items():
            if used and not getattr(block.capabilities, key):
                unused = "false" if key == "sequence" else "1"
                raise UserError(
                    f"parallel.{key} = {getattr(parallel, key)}: block {name} of type {block.type} cannot be laid out "
                    f"so; expected {unused}"
                )
        if parallel.recompute_of(name) == "selective" and not block.capabilities.selective:
            raise UserError(
                f"parallel.recompute = selective: block {name} of type {block.type} has no core operation to compute "
                "again; expected none or full for it"
            )
        has_experts = any(spec.experts for spec in block.tensors().values())
        if has_experts and parallel.tensor > 1 and not parallel.sequence:
            raise UserError(
                f"parallel.tensor = {parallel.tensor}: block {name} of type {block.type} has experts, to which every "
                "token must go once; expected parallel.sequence true beside it, or tensor 1"
            )
    _check_overlap(config)
    _require_even(everything, "tensor", parallel.tensor)
    sequence = {
        name: {
            f"{index}.{key}": spec
            for index, mixer in enumerate(block.mixers)
            if mixer.kind == "sequence"  # context parallelism shares out the heads of these alone
            for key, spec in mixer.tensors().items()
        }
        for name, block in blocks.items()
    }
    _require_even(sequence, "tensor x context", parallel.tensor * parallel.context)
    _require_even(everything, "expert_tensor", parallel.expert_tensor)
    experts = {spec.shape[0] for tensors in everything.values() for spec in tensors.values() if spec.experts}
    if parallel.expert * parallel.expert_tensor > 1 and not experts:
        key = "expert" if parallel.expert > 1 else "expert_tensor"
        raise UserError(f"parallel.{key} = {getattr(parallel, key)}: no layer has experts; expected 1")
    if parallel.expert * parallel.expert_tensor > 1 and model.backend == "torch":
        raise UserError("model.backend = torch: expected megatron, for expert parallelism")
    for count in sorted(experts):
        if count % parallel.expert:
            raise UserError(
                f"parallel.expert = {parallel.expert}: a layer has {count} experts "
                f"(possible: {_divisors(math.gcd(*experts))})"
            )


def _check_overlap(config: RunConfig) -> None:
    """Raise UserError where tensor-parallel messages shall overlap with linears that only Transformer Engine has."""
    if not config.parallel.tp_comm_overlap:
        return
    if config.model.backend == "transformer_engine":
        raise UserError(
            "parallel.tp_comm_overlap = true: linears of Transformer Engine do not overlap so; expected model.backend "
            "auto or megatron, or tp_comm_overlap false"
        )
    if config.precision.format == "fp8" and not config.precision.emulate:
        raise UserError(
            "parallel.tp_comm_overlap = true: linears of Transformer Engine, which multiply FP8 numbers, do not "
            "overlap so; expected precision.format bf16, or tp_comm_overlap false"
        )


def _require_even(layers: dict[str, dict[str, TensorSpec]], key: str, ways: int) -> None:
    """Raise UserError where a part of a layer does not divide into `ways`; the ways it names divide all layers."""
    experts = key == "expert_tensor"
    for name, specs in layers.items():
        for part in indivisible(specs, ways, experts):
            units = (p.units for all_specs in layers.values() for spec in all_specs.values() if spec.experts == experts
                     for p in spec.parts)  # fmt: skip
            raise UserError(
                f"parallel.{key} = {ways}: {part.key} of {name} gives {part.units} {part.name}, which does not "
                f"divide into {ways} (possible: {_divisors(math.gcd(*units))})"
            )


def _divisors(number: int) -> str:
    """Return the divisors of a number as text, without those that pair with one above LARGEST_DIVISOR."""
    small = [n for n in range(1, min(math.isqrt(number), LARGEST_DIVISOR) + 1) if number % n == 0]
    return ", ".join(map(str, sorted({*small, *(number // n for n in small)})))
