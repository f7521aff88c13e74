"""Build and run one process of a pipeline stage on the meta device: shapes without values, groups without peers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor

from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from hybridtron.distributed.groups import ParallelContext, make_groups, parallel_context_of
from hybridtron.errors import UserError
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.planner.fake_process_group import Traffic, fake_process_group
from hybridtron.tensors import TensorSpec
from hybridtron.training.build import build_chunks
from hybridtron.training.config import RunConfig

META = torch.device("meta")


@dataclass(frozen=True)
class StageRun:
    """One process of a pipeline stage. Bytes are what it sends for one micro-batch, by group and kind of collective."""

    parameters: dict[str, int]  # elements that this process holds, by parameter name
    activation_bytes: int  # kept for the backward pass of one micro-batch
    sent_per_micro_batch: dict[tuple[str, str], int] = field(default_factory=dict)


def run_stage(config: RunConfig, world_size: int, pipeline_rank: int) -> StageRun:
    """Run forward and backward of one micro-batch through the layers of the first process of a pipeline stage.

    Raises UserError where a parameter or an activation has not the shape that its declaration says, and inside process
    groups.
    """
    rank = pipeline_rank * (world_size // config.parallel.pipeline)
    with cuda_calls_on_cpu(), fake_process_group(rank, world_size) as traffic, _meta():
        make_groups(config.parallel)
        parallel_context = parallel_context_of(config.parallel, rank, world_size, META)
        _name_groups(traffic)
        chunks, _ = build_chunks(config, parallel_context)
        parameters = _check_parameters(config, chunks, parallel_context)
        traffic.sent.clear()
        kept = sum(_pass(config, chunk, parallel_context) for chunk in chunks)
        return StageRun(parameters, kept, dict(traffic.sent))


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    """Make tensors without storage, also where megatron-core asks for the current device."""
    with patch("torch.cuda.current_device", lambda: META), META:
        yield


def _name_groups(traffic: Traffic) -> None:
    """Name megatron-core's groups in the traffic's account."""
    from megatron.core import parallel_state as state

    traffic.name(state.get_tensor_model_parallel_group(), "tensor")
    traffic.name(state.get_context_parallel_group(), "context")
    traffic.name(state.get_tensor_and_context_parallel_group(), "tensor and context")
    traffic.name(state.get_expert_model_parallel_group(), "expert")
    traffic.name(state.get_expert_tensor_parallel_group(), "expert tensor")
    traffic.name(state.get_expert_tensor_and_model_parallel_group(), "experts")


def _check_parameters(
    config: RunConfig, chunks: list[LanguageModel], parallel_context: ParallelContext
) -> dict[str, int]:
    """Return this process's elements of each parameter; UserError for a shape that is not the declared one."""
    specs: dict[str, TensorSpec] = model_tensors(config.model)
    held: Counter[str] = Counter()
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            expected = specs[name].local_shape(parallel_context.shards)
            if tuple(parameter.shape) != expected:
                raise UserError(f"dry run: {name} has shape {tuple(parameter.shape)}; expected {expected}")
            held[name] += parameter.numel()
    return dict(held)


def _pass(config: RunConfig, chunk: LanguageModel, parallel_context: ParallelContext) -> int:
    """Run a chunk forward and backward; return the bytes that the forward pass keeps for the backward pass."""
    batch, run = config.train.micro_batch_size, config.data.seq_len // parallel_context.context.size
    tokens = torch.empty(batch, run, dtype=torch.long)
    shards = parallel_context.shards.tensor.size if config.parallel.sequence else 1
    shape = (run // shards, batch, config.model.hidden_size)
    if not chunk.stage.is_first:
        dtype = next(chunk.parameters()).dtype
        chunk.set_input_tensor([torch.empty(shape, dtype=dtype, requires_grad=True)])
    storages: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = chunk(tokens, tokens)
    result = output[0] if chunk.stage.is_last else output
    expected = (run, batch) if chunk.stage.is_last else shape
    if tuple(result.shape) != expected:
        raise UserError(f"dry run: stage {chunk.stage.index} gives shape {tuple(result.shape)}; expected {expected}")
    result.backward(torch.empty_like(result))
    weights = {parameter.untyped_storage()._cdata for parameter in chunk.parameters()}
    return sum(size for cdata, (_, size) in storages.items() if cdata not in weights)
