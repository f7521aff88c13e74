"""Build and run one process of a pipeline stage on the meta device: shapes without values, groups without peers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor

from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from hybridtron.distributed.process_groups.groups import ParallelContext, make_groups, parallel_context_of
from hybridtron.errors import UserError
from hybridtron.model.activation_offload import ActivationOffload
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.ops.device import choosing_for
from hybridtron.planner.fake_process_group import Traffic, fake_process_group
from hybridtron.planner.host_memory import HostMemory
from hybridtron.planner.live_memory import LiveMemory, Phase, mark_phases
from hybridtron.tensors import TensorSpec
from hybridtron.training.build import build_chunks
from hybridtron.training.config import RunConfig

META = torch.device("meta")
EMBEDDING, LOSS, OUTPUT, MTP = "the embedding", "the loss", "the output", "multi-token prediction"
INPUT = "the input"
Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Passes:
    """Memory of the forward and backward pass of one micro-batch, in bytes.

    `temporaries` is what lives beyond what is kept when most lives, which is in the phase `peak`. `loss` is what
    final norm, logits, loss and their gradients take at most; `layer` the most that the backward pass of a layer adds:
    gradients, temporaries, and what it recomputes. `host` is what waits in pinned CPU memory in place of the GPU's.
    """

    kept: dict[str, int]  # by part: the embedding, the layers of each block, the loss, a stage's output
    temporaries: int
    peak: str
    loss: int
    layer: int
    host: int = 0

    @classmethod
    def of(cls, memory: LiveMemory, kept: dict[str, int], host: int) -> Passes:
        """Read the memory after both passes; `kept` is what the forward pass has left for the backward pass, and `host`
        what of it is in CPU memory."""
        peak = max(memory.largest, key=lambda phase: memory.largest[phase])
        loss = [size for phase, size in memory.largest.items() if phase.part == LOSS]
        layers = [
            size - memory.at_start[phase]
            for phase, size in memory.largest.items()
            if phase.backward and phase.layer is not None
        ]
        return cls(
            kept=kept,
            temporaries=memory.largest[peak] - sum(kept.values()),
            peak=str(peak),
            loss=max(loss) - memory.at_start[Phase(LOSS)] if Phase(LOSS) in memory.at_start else 0,
            layer=max(layers),
            host=host,
        )

    @classmethod
    def together(cls, chunks: list[Passes]) -> Passes:
        """Join the chunks of a process, which take turns."""
        peak = max(chunks, key=lambda chunk: chunk.temporaries)
        kept = sum((Counter(chunk.kept) for chunk in chunks), Counter[str]())
        return cls(
            kept=dict(kept),
            temporaries=peak.temporaries,
            peak=peak.peak,
            loss=max(chunk.loss for chunk in chunks),
            layer=max(chunk.layer for chunk in chunks),
            host=sum(chunk.host for chunk in chunks),
        )


@dataclass(frozen=True)
class StageRun:
    """One process of a pipeline stage. Bytes sent are those for one micro-batch, by group and kind of collective."""

    parameters: dict[str, int]  # elements that this process holds, by parameter name
    passes: Passes
    sent_per_micro_batch: dict[tuple[str, str], int] = field(default_factory=dict)


def run_stage(config: RunConfig, world_size: int, pipeline_rank: int, device: Device) -> StageRun:
    """Run forward and backward of one micro-batch through the layers of the first process of a pipeline stage.

    Ops take the implementations that they take on the device.
    Raises UserError where a parameter or an activation has not the shape that its declaration says, and inside process
    groups.
    """
    rank = pipeline_rank * (world_size // config.parallel.pipeline)
    chosen = choosing_for("cuda" if device == "gpu" else "cpu")
    with cuda_calls_on_cpu(), fake_process_group(rank, world_size) as traffic, _meta(), chosen:
        make_groups(config.parallel)
        parallel_context = parallel_context_of(config.parallel, rank, world_size, META)
        _name_groups(traffic)
        chunks, _ = build_chunks(config, parallel_context)
        parameters = _check_parameters(config, chunks, parallel_context)
        traffic.sent.clear()
        passes = [_pass(config, chunk, parallel_context, device) for chunk in chunks]
        return StageRun(parameters, Passes.together(passes), dict(traffic.sent))


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


def _pass(config: RunConfig, chunk: LanguageModel, parallel_context: ParallelContext, device: Device) -> Passes:
    """Run a chunk forward and backward and count what its tensors take."""
    batch, run = config.train.micro_batch_size, config.data.seq_len // parallel_context.context.size
    shards = parallel_context.shards.tensor.size if config.parallel.sequence else 1
    shape = (run // shards, batch, chunk.packing.width)
    memory, host = LiveMemory(chunk.parameters(), Phase(EMBEDDING)), HostMemory()
    if config.parallel.cpu_offload_layers and device == "gpu":
        chunk.offload = ActivationOffload(chunk.layer_list, config.parallel.cpu_offload_layers, host)
        chunk.offload.on_kept = memory.save
    with memory:
        tokens = torch.empty(batch, run, dtype=torch.long)
        if not chunk.stage.is_first:
            chunk.set_input_tensor([torch.empty(shape, dtype=config.precision.dtype, requires_grad=True)])
        _mark(config, chunk, memory)
        with torch.autograd.graph.saved_tensors_hooks(memory.save, lambda tensor: tensor):
            output = chunk(tokens, torch.empty(batch, run + chunk.mtp_depth, dtype=torch.long))
        result = output[0] if chunk.stage.is_last else output
        expected = (run, batch) if chunk.stage.is_last else shape
        if tuple(result.shape) != expected:
            raise UserError(
                f"dry run: stage {chunk.stage.index} gives shape {tuple(result.shape)}; expected {expected}"
            )
        kept = memory.kept()
        # megatron-core's schedule holds on to both until the backward pass
        if not chunk.stage.is_last:
            kept[OUTPUT] = result.untyped_storage().nbytes()
        if chunk.received is not None and not memory.is_saved(chunk.received):
            kept[INPUT] = chunk.received.untyped_storage().nbytes()
        memory.enter(Phase(LOSS, backward=True))
        results = [result, *output[2:]] if chunk.stage.is_last else [result]  # also losses of further tokens
        torch.autograd.backward(results, [torch.empty_like(each) for each in results])
    return Passes.of(memory, kept, host.size)


def _mark(config: RunConfig, chunk: LanguageModel, memory: LiveMemory) -> None:
    """Mark the phases of a chunk's passes, and free each parameter's gradient once it is there: training adds it to
    the gradients in float32 at once."""
    for name, layer in chunk.layers.items():
        mark_phases(memory, Phase(config.model.layer_names[int(name)], int(name)), layer)
    if chunk.stage.is_last:
        modules = chunk.mtp if chunk.mtp_depth else ()
        for module in modules:
            mark_phases(memory, Phase(MTP), module)
        for end in (chunk, *modules):
            end.final_norm.register_forward_pre_hook(lambda *_: memory.enter(Phase(LOSS)))
    for parameter in chunk.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_free_gradient)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
