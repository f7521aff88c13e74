"""A model laid out over processes, with its optimizer: training passes, guarded updates, evaluation.

This is where megatron-core's schedules, data parallelism and optimizers are driven. A model is one module for each run
of layers that this process holds. Its forward takes (tokens, labels, documents) and returns the loss and the log
partition function of each position, and with more labels than tokens the losses of further tokens, or in a stage before
the last what the next stage is given by `set_input_tensor`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from hybridtron.distributed.config import ParallelConfig, PrecisionConfig
from hybridtron.distributed.cpu_compat import calls_as_they_are
from hybridtron.distributed.data_parallel.parameter_gathers import Gathered, ParameterGathers
from hybridtron.distributed.data_parallel.reduction_order import finalize_ordered, reduction_orders
from hybridtron.distributed.data_parallel.replicas import make_replicas
from hybridtron.distributed.expert_load import ExpertLoads, fractions
from hybridtron.distributed.fp8 import FP8Linears
from hybridtron.distributed.layer_statistics import LayerStatistics
from hybridtron.distributed.optimizer.adamw import AdamW, make_optimizer, set_rates
from hybridtron.distributed.optimizer.gradient_clipping import clip_groups
from hybridtron.distributed.optimizer.gradient_norm import norm_of, squared_norms
from hybridtron.distributed.optimizer.weight_average import WeightAverage
from hybridtron.distributed.process_groups.groups import ParallelContext, gather
from hybridtron.distributed.recorded_passes import RecordedPasses, aside, can_record
from hybridtron.documents import Documents, weights_ahead
from hybridtron.errors import UserError, cause_of
from hybridtron.ops.device import to_device
from hybridtron.ops.moe.attached_loss import attached_losses_scale
from hybridtron.tensors import TensorSpec

# Tokens and labels, each [micro_batch_size, seq_len], and their documents where these are kept apart.
MicroBatch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Documents | None]


@dataclass(frozen=True)
class StepResult:
    """`loss` is the mean over the global batch; `applied` is false when it or a gradient was not finite. `expert_load`
    gives, for each layer with experts, the share of each of them in the choices of the global batch. `mtp_loss` is the
    mean loss of multi-token prediction over its depths; None without it."""

    loss: float
    grad_norm: float
    applied: bool
    expert_load: dict[str, list[float]] = field(default_factory=dict)
    mtp_loss: float | None = None


def megatron_config(travelling_width: int, parallel: ParallelConfig, precision: PrecisionConfig) -> TransformerConfig:
    """Build the config that megatron-core asks for, most of which only concerns its own layers.

    `travelling_width` is that of the tensor [s, b, width] which travels between pipeline stages.
    """
    dtype = precision.dtype
    interleaved = parallel.virtual_pipeline > 1
    return TransformerConfig(
        num_layers=parallel.num_stages,
        hidden_size=travelling_width,
        num_attention_heads=parallel.tensor,
        kv_channels=1,
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.sequence,
        tp_comm_overlap=parallel.tp_comm_overlap,
        context_parallel_size=parallel.context,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if interleaved else None,
        overlap_p2p_comm=interleaved,  # batched messages of two interleaved stages are mismatched without an error
        batch_p2p_comm=not interleaved,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision.parameter_format == "bf16",
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
    )


class Engine:
    """Trains the runs of layers `chunks` of a model whose parameters are declared in `specs`, in the layout of
    `parallel_context`."""

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        specs: dict[str, TensorSpec],
        config: TransformerConfig,
        parallel_context: ParallelContext,
        adamw: AdamW,
        z_loss: float = 0.0,
        parallel: ParallelConfig | None = None,
        fp8: FP8Linears | None = None,
        mtp: tuple[int, float] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Take the model; `mtp` is the depth of multi-token prediction, and the weight of its loss. With
        `cuda_graphs` a GPU replays the passes of training steps."""
        self.specs = specs
        self.parallel_context = parallel_context
        self.z_loss = z_loss
        self.mtp_depth, self.mtp_weight = mtp or (0, 0.0)
        self.adamw = adamw
        self.fp8 = fp8
        parallel = parallel or ParallelConfig()
        stream = torch.cuda.Stream() if cuda_graphs and can_record(parallel_context.device) else None
        with aside(stream):
            self.replicas = make_replicas(chunks, specs, config, parallel)
        self.reductions = reduction_orders(self.replicas) if parallel.overlap_grad_reduce else []
        self.gathers = ParameterGathers(self.replicas if parallel.overlap_param_gather else [])
        parallel_context.before_leaving.append(self.gathers.wait)
        self.chunks = Gathered(chunks, self.gathers.wait)
        self.expert_loads = ExpertLoads(chunks, specs, parallel_context.device)
        self.optimizer = make_optimizer(self.replicas, config, adamw, parallel.distributed_optimizer, parallel_context)
        self.layer_statistics: LayerStatistics | None = None  # of the next step that ends
        self.is_stepping = False  # or a step has failed
        self.average = WeightAverage(self.optimizer, self.replicas, self.gathers, *adamw.ema) if adamw.ema else None
        config.finalize_model_grads_func = partial(finalize_ordered, self.reductions)
        config.grad_scale_func = self.optimizer.scale_loss
        self.weights_ahead: dict[tuple[int, int], Tensor] = {}
        self.recorded: RecordedPasses | None = None
        if stream is not None:
            passes = partial(self._run, forward_only=False)
            self.recorded = RecordedPasses(passes, self._zero_gradients, self.replicas, parallel_context.device, stream)

    def train_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """Update the parameters from this process's micro-batches, unless the loss or a gradient is not finite.

        After an exception, before the update, which all processes raised after the same messages to each other, all may
        call this again: it begins anew.
        """
        if self.is_stepping:
            self._forget_step()
        self.is_stepping, statistics = True, self.layer_statistics
        for replica in self.replicas:
            replica.train()
        self._zero_gradients()
        self.expert_loads.begin()
        # What a layer attaches is a mean over sequences, of which processes that share them give a part each; the
        # gradients of those are averaged like those of copies.
        with attached_losses_scale(self.parallel_context.context.size / len(micro_batches)):
            means = self._means(self._passes(micro_batches), 1 + self.mtp_depth)
        load = self.expert_loads.total()
        set_rates(self.optimizer, self.adamw, lr)
        self.optimizer.prepare_grads()
        if statistics:
            statistics.before_update()
        if self.adamw.clip_groups:
            clip_groups(self.optimizer, self.adamw.clip_groups, self.parallel_context)
        norms = squared_norms(self.optimizer, means.device)
        (loss, *further), grad_norm, shares = _read(means, norms, fractions(load))
        applied = self.agree(math.isfinite(loss) and math.isfinite(grad_norm))
        if applied:
            if self.adamw.clip_grad:
                for optimizer in self.optimizer.chained_optimizers:
                    clip_grad_by_total_norm_fp32(optimizer.get_parameters(), self.adamw.clip_grad, grad_norm)
            if self.average:
                self.average.require_begun()
            self.gathers.wait()  # also for layers that did not run
            self.optimizer.step_with_ready_grads()
            self.gathers.begin()
            if self.average:
                self.average.after_update()
            self.expert_loads.rebalance(load)
            if statistics:
                statistics.after_update()
        if self.fp8:
            self.fp8.end_step(applied)
        self.is_stepping, self.layer_statistics = False, None
        return StepResult(loss, grad_norm, applied, shares, fmean(further) if further else None)

    def _forget_step(self) -> None:
        """Leave nothing of a step that failed to the next one; all processes call this."""
        gc.collect()  # of the graph that it left, and of megatron-core's contexts in it
        for order in self.reductions:
            order.forget()
        if self.fp8:
            self.fp8.end_step(applied=False)
        if self.layer_statistics:
            self.layer_statistics.restart()

    def collect_layer_statistics(self) -> LayerStatistics:
        """Return what collects the per-layer norms of the next training step, and gives them after it."""
        if self.layer_statistics:
            self.layer_statistics.stop()
        self.layer_statistics = LayerStatistics(self.chunks.chunks, self.specs, self.optimizer, self.parallel_context)
        return self.layer_statistics

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch], counted: int) -> float:
        """Compute the mean loss over the first `counted` sequences of each data-parallel process.

        All processes must be given equally many micro-batches.
        """
        for replica in self.replicas:
            replica.eval()
        return float(self._means(self._run(micro_batches, forward_only=True), 1, counted))

    def agree(self, mine: bool) -> bool:
        """Return True where every process passes true."""
        return bool(self.largest(0 if mine else 1) == 0)

    def largest(self, mine: int) -> int:
        """Return the largest of all processes' values. A GPU goes on working meanwhile."""
        if self.parallel_context.world_size == 1:
            return int(mine)
        group = self.parallel_context.control_group
        value = torch.tensor(mine, device="cpu" if group else self.parallel_context.device)
        dist.all_reduce(value, dist.ReduceOp.MAX, group)
        return int(value)

    def first_failure(self, action: Callable[[], object]) -> str | None:
        """Call an action in every process; return in all of them why it failed in the first where it did, or None."""
        failure = None
        try:
            action()
        except (OSError, RuntimeError, UserError, CheckpointException) as error:
            failure = cause_of(error)
        return self.first_text(failure)

    def first_text(self, mine: str | None) -> str | None:
        """Return in all processes the text of the first one that passes one, or None."""
        if not self.largest(mine is not None):
            return None
        return next(text for text in gather(mine) if text is not None)

    def _zero_gradients(self) -> None:
        for replica in self.replicas:
            replica.zero_grad_buffer()
        self.optimizer.zero_grad()

    def _passes(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Add up the gradients of a step; return the losses [b, 1 + depths] of its sequences."""
        if self.recorded is None:
            return self._run(micro_batches, forward_only=False)
        return self.recorded.run(micro_batches, is_watched=bool(self.fp8 and self.fp8.state.collects))

    def _run(self, micro_batches: Sequence[MicroBatch], forward_only: bool) -> list[Tensor]:
        """Run the schedule; return the losses [b, 1 + depths] of each micro-batch in the last stage, none in others."""
        one = len(self.replicas) == 1
        losses: list[Tensor] = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iter(micro_batches) if one else [iter(micro_batches) for _ in self.replicas],
            model=self.replicas[0] if one else self.replicas,
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0][0].size(1),
            micro_batch_size=micro_batches[0][0].size(0),
            forward_only=forward_only,
        )
        return losses

    def _means(self, losses: list[Tensor], kinds: int, counted: int | None = None) -> Tensor:
        """Average each kind of loss over the sequences of all processes, each counted by one process of the last
        stage."""
        total = torch.zeros(kinds + 1, dtype=torch.float64, device=self.parallel_context.device)  # sums, number
        if losses and self.parallel_context.shards.tensor.rank == 0:
            own = torch.cat(losses).double()[:counted]
            total = torch.cat([own, torch.ones_like(own[:, :1])], 1).sum(0)
        dist.all_reduce(total)
        return total[:-1] / total[-1]

    @calls_as_they_are()
    def _forward(self, micro_batches: Iterator[MicroBatch], replica: nn.Module) -> tuple[Any, Any]:
        """Run one micro-batch through a chunk; return its output and the function that makes a loss of it."""
        tokens, labels, *rest = next(micro_batches)
        documents = rest[0] if rest else None
        weights = None if documents is None else self._own_run(documents.weights)
        ahead = self.mtp_depth if replica.training else 0
        further = [self._weights_ahead(tokens.size(1), depth, documents) for depth in range(1, ahead + 1)]
        output = replica(self._own_run(tokens), self._own_run(F.pad(labels, (0, ahead)), ahead), documents)
        return output, partial(
            _mean_loss,
            weights=weights,
            further_weights=further,
            z_loss=self.z_loss,
            mtp_weight=self.mtp_weight,
            shares=self.parallel_context.context.size,
        )

    def _weights_ahead(self, seq_len: int, depth: int, documents: Documents | None) -> Tensor:
        """Return this process's weights of a depth of multi-token prediction, those of whole sequences from before."""
        if documents is not None:
            return self._own_run(weights_ahead(seq_len, depth, documents))
        if (seq_len, depth) not in self.weights_ahead:
            self.weights_ahead[seq_len, depth] = self._own_run(weights_ahead(seq_len, depth))
        return self.weights_ahead[seq_len, depth]

    def _own_run(self, values: Tensor, ahead: int = 0) -> Tensor:
        """Return the part of [b, s + ahead] for the tokens that this process holds, [b, s / cp + ahead], on its
        device."""
        context = self.parallel_context.context
        length = (values.size(1) - ahead) // context.size
        own = values[:, context.rank * length : (context.rank + 1) * length + ahead]
        return to_device(own, self.parallel_context.device)


def _read(
    means: Tensor, squares: Tensor, shares: dict[str, Tensor]
) -> tuple[list[float], float, dict[str, list[float]]]:
    """Return the mean losses, the norm of all gradients and the experts' shares: all that a step reads, in one copy."""
    sizes = [len(means), len(squares), *(len(share) for share in shares.values())]
    joined = torch.cat([means, squares.double(), *(share.double() for share in shares.values())])
    losses, squared, *loads = (part.tolist() for part in joined.cpu().split(sizes))
    return losses, norm_of(squared), dict(zip(shares, loads, strict=True))


def _mean_loss(
    output: tuple[Tensor, ...],
    weights: Tensor | None,
    further_weights: Sequence[Tensor],
    z_loss: float,
    mtp_weight: float,
    shares: int,
) -> tuple[Tensor, Tensor]:
    """Return the loss to minimise, and the losses [b, 1 + depths] of each sequence to report, with weights [b, s] of
    the positions, and of those at each depth of multi-token prediction.

    The z-loss, of all positions, keeps log Z near 0 (Chowdhery et al. 2022, PaLM, section 5). The losses of further
    tokens are averaged over depths (DeepSeek-AI 2024, arXiv 2412.19437, equation 25).
    """
    nll, log_z, *rest = output
    if weights is not None:
        nll = nll * weights.t()
    loss = nll.mean()
    reported = [nll.detach().mean(0)]  # [s, b] -> [b]
    if further_weights:
        further = [nll * each.t() for nll, each in zip(rest[0], further_weights, strict=True)]
        loss = loss + mtp_weight * torch.stack(further).mean()
        reported += [nll.detach().mean(0) for nll in further]
    if z_loss:
        loss = loss + z_loss * log_z.square().mean()
    return loss / shares, torch.stack(reported, 1)  # megatron-core adds up what the processes of one sequence return
