"""Build the model of a resolved config on its backend, and the engine that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from hybridtron.backends.base import Backend
from hybridtron.backends.transformer_engine.installation import NEEDS_CUDA, transformer_engine_problem
from hybridtron.distributed.config import AMAX_HISTORY
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.errors import UserError
from hybridtron.model.activation_offload import ActivationOffload
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.pinned_memory import PinnedMemory
from hybridtron.model.quantized import quantized_linears
from hybridtron.model.residual.stream import Packing
from hybridtron.model.stage import cut, imbalance, stage_costs
from hybridtron.model.tensors import model_tensors, parameter_group
from hybridtron.ops.matmul_format import use_matmul_format
from hybridtron.training.config import RunConfig

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from hybridtron.distributed.engine import Engine
    from hybridtron.distributed.fp8 import FP8Linears
    from hybridtron.distributed.optimizer.gradient_clipping import ClipGroup

BackendName = Literal["torch", "megatron", "transformer_engine"]


def build_chunks(config: RunConfig, parallel_context: ParallelContext) -> tuple[list[LanguageModel], TransformerConfig]:
    """Build the model chunks (runs of layers) of this process's pipeline stage on its device.

    They have their initial weights, but on the meta device.
    """
    from hybridtron.distributed.engine import megatron_config

    model, parallel = config.model, config.parallel
    stages = cut(model, parallel.num_stages, config.data.seq_len)
    width = Packing(model, parallel.tensor, parallel.sequence).widest(stages)
    megatron = megatron_config(width, parallel, config.precision)
    backend = make_backend(
        choose_backend(config, parallel_context.device.type), megatron, parallel_context, model.norm_eps
    )
    chunks = []
    for stage in stages[parallel_context.pipeline.rank :: parallel.pipeline]:
        chunk = LanguageModel(model, backend, stage, parallel.recompute_of, width)
        if parallel_context.device.type != "meta":
            initialize(chunk, model, config.seed, parallel_context.shards)
        if parallel.cpu_offload_layers and parallel_context.device.type == PinnedMemory.device:
            chunk.offload = ActivationOffload(chunk.layer_list, parallel.cpu_offload_layers, PinnedMemory())
        chunks.append(chunk)
    return chunks, megatron


def choose_backend(config: RunConfig, device: str) -> BackendName:
    """Return who builds the layers on this kind of device.

    `auto` takes Transformer Engine for bf16 and FP8 on CUDA where it is usable; in fp32 it would multiply in TF32, and
    its linears do not overlap as `parallel.tp_comm_overlap` says. On the meta device megatron-core's modules stand for
    Transformer Engine's, which do not run there.
    Raises UserError where `transformer_engine` is asked for, or FP8 without emulation, and it is not usable.
    """
    name, precision = config.model.backend, config.precision
    if name in ("torch", "megatron"):
        return name
    emulates = precision.format == "fp8" and precision.emulate
    if emulates and name == "transformer_engine":
        raise UserError("model.backend = transformer_engine: expected auto, megatron or torch, which emulate FP8")
    fp32 = name == "auto" and precision.format == "fp32"
    if device == "meta" or emulates or fp32 or config.parallel.tp_comm_overlap:
        return "megatron"
    problem = transformer_engine_problem() if device == "cuda" else NEEDS_CUDA
    if problem and precision.format == "fp8":
        raise UserError(f"precision.emulate = false: {problem}; expected true, which works on any device")
    if problem and name == "transformer_engine":
        raise UserError(f"model.backend = transformer_engine: {problem}; or expected auto, megatron or torch")
    return "megatron" if problem else "transformer_engine"


def make_backend(
    name: BackendName, megatron: TransformerConfig, parallel_context: ParallelContext, norm_eps: float
) -> Backend:
    """Make the backend of that name over the groups of this process."""
    if name == "torch":
        from hybridtron.backends.torch import TorchBackend

        return TorchBackend(megatron.params_dtype, parallel_context.device, norm_eps)
    if name == "megatron":
        from hybridtron.backends.megatron.backend import MegatronBackend as Chosen
    else:
        from hybridtron.backends.transformer_engine.backend import TransformerEngineBackend as Chosen
    return Chosen(
        megatron,
        parallel_context.shards,
        parallel_context.tensor_group,
        parallel_context.context_group,
        parallel_context.sequence_group,
        parallel_context.expert_groups,
        parallel_context.device,
        norm_eps,
    )


def build_engine(config: RunConfig, parallel_context: ParallelContext) -> tuple[Engine, Sequence[LanguageModel]]:
    """Build the engine that trains this process's model chunks, and return both."""
    from hybridtron.distributed.data_parallel.parameter_gathers import Gathered
    from hybridtron.distributed.engine import Engine
    from hybridtron.distributed.optimizer.adamw import AdamW
    from hybridtron.distributed.optimizer.muon import Muon

    use_matmul_format(config.precision.matmul, parallel_context.device)
    chunks, megatron = build_chunks(config, parallel_context)
    fp8 = _use_fp8(config, chunks, parallel_context)
    optimizer = config.optimizer
    muon = Muon(**optimizer.muon.model_dump()) if optimizer.type == "muon" else None
    ema = (optimizer.ema.decay, optimizer.ema.every) if optimizer.ema else None
    adamw = AdamW(
        optimizer.weight_decay, optimizer.betas, optimizer.eps, optimizer.clip_grad, _clip_groups(config), muon, ema
    )
    engine = Engine(
        chunks,
        model_tensors(config.model),
        megatron,
        parallel_context,
        adamw,
        config.train.z_loss,
        config.parallel,
        fp8,
        (config.model.mtp.depth, config.model.mtp.loss_weight) if config.model.mtp else None,
        config.train.cuda_graphs,
    )
    return engine, Gathered(chunks, engine.gathers.wait)


def _clip_groups(config: RunConfig) -> list[ClipGroup]:
    """Return the groups of parameters whose gradients have limits of their own."""
    from hybridtron.distributed.optimizer.gradient_clipping import ClipGroup

    names: dict[str, list[str]] = {}
    for name in model_tensors(config.model):
        names.setdefault(parameter_group(config.model, name), []).append(name)
    return [ClipGroup(limit, frozenset(names[group])) for group, limit in config.optimizer.clip_groups.items()]


def _use_fp8(config: RunConfig, chunks: list[LanguageModel], parallel_context: ParallelContext) -> FP8Linears | None:
    """Make the linears of the chunks multiply FP8 numbers, where the config asks for it."""
    precision = config.precision
    linears = {linear.name: linear.spec for linear in quantized_linears(config.model, precision)}
    if not linears:
        return None
    if precision.emulate:
        from hybridtron.distributed.fp8 import FP8Emulation

        return FP8Emulation(chunks, linears, precision.recipe, parallel_context)
    from hybridtron.backends.transformer_engine.fp8 import TransformerEngineFP8
    from hybridtron.backends.transformer_engine.recipes import unavailable

    if problem := unavailable(precision.recipe):
        raise UserError(f"precision.recipe = {precision.recipe}: {problem} Expected another, or precision.emulate true")
    return TransformerEngineFP8(
        chunks, linears, precision.recipe, AMAX_HISTORY, precision.alignment, parallel_context.stage_group
    )


def describe_stages(config: RunConfig) -> str:
    """Return a line about the layers of each pipeline stage and their load imbalance."""
    stages = cut(config.model, config.parallel.num_stages, config.data.seq_len)
    runs = " | ".join(f"{stage.start}-{stage.stop - 1}" for stage in stages)
    longest = imbalance(stage_costs(config.model, stages, config.data.seq_len), config.parallel.pipeline)
    return f"pipeline stages of layers {runs}; the busiest process is {longest:.1%} above the mean in FLOPs"
