"""A model laid out over processes, with its optimizer: training passes, guarded updates, evaluation.

This is where megatron-core's schedules, data parallelism and optimizers are driven. The model is any module whose
forward takes (tokens, labels) and returns the loss and the log partition function of each position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hybridtron.distributed.config import ParallelConfig, PrecisionConfig
from hybridtron.distributed.groups import Place
from hybridtron.tensors import TensorSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

MicroBatch = tuple[Tensor, Tensor]  # tokens and labels, each [micro_batch_size, seq_len]


@dataclass(frozen=True)
class AdamW:
    """What the optimizer needs besides the learning rate, which every step is given."""

    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_grad: float  # 0: gradients are not clipped


@dataclass(frozen=True)
class StepResult:
    """`loss` is the mean over the global batch; `applied` is false when it or a gradient was not finite."""

    loss: float
    grad_norm: float
    applied: bool


def megatron_config(
    hidden_size: int, num_layers: int, parallel: ParallelConfig, precision: PrecisionConfig
) -> TransformerConfig:
    """What megatron-core wants to know about a model, most of which only concerns its own layers."""
    dtype = DTYPES[precision.format]
    return TransformerConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=parallel.tensor,
        kv_channels=1,
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.sequence and parallel.tensor > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision.format == "bf16",
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
    )


class Engine:
    """Trains `model` whose parameters are declared in `specs`, in the layout of `place`."""

    def __init__(
        self,
        model: nn.Module,
        specs: dict[str, TensorSpec],
        config: TransformerConfig,
        place: Place,
        adamw: AdamW,
        z_loss: float = 0.0,
    ) -> None:
        self.model = model
        self.specs = specs
        self.place = place
        self.z_loss = z_loss
        self.adamw = adamw
        _annotate(model, specs, config.sequence_parallel)
        model.model_type = ModelType.encoder_or_decoder
        model.set_input_tensor = lambda tensor: None  # type: ignore[assignment]
        self.replica = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
        self.replica.broadcast_params()
        self.optimizer = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=0.0,
                weight_decay=adamw.weight_decay,
                adam_beta1=adamw.betas[0],
                adam_beta2=adamw.betas[1],
                adam_eps=adamw.eps,
                clip_grad=adamw.clip_grad,
                params_dtype=config.params_dtype,
                bf16=config.bf16,
            ),
            [self.replica],
            config_overrides={
                ParamKey(predicate=ParamPredicate("undecayed", lambda parameter: not parameter.decay)): {"wd_mult": 0.0}
            },
        )
        for optimizer in self.optimizer.chained_optimizers:
            if isinstance(optimizer.optimizer, torch.optim.AdamW):  # one pass over the state instead of ten
                for group in optimizer.optimizer.param_groups:
                    group["fused"] = True
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss

    def train_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """One update from this process's micro-batches; nothing is updated when the loss or a gradient is not
        finite."""
        self.replica.train()
        self.replica.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self._run(micro_batches, forward_only=False)
        for group in self.optimizer.param_groups:
            # All from the config, since a loaded checkpoint brings the values that it was saved with.
            group["lr"], group["betas"], group["eps"] = lr, self.adamw.betas, self.adamw.eps
            group["weight_decay"] = self.adamw.weight_decay * group["wd_mult"]
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        applied = self.agree(math.isfinite(loss) and math.isfinite(grad_norm))
        if applied:
            if self.adamw.clip_grad:
                for optimizer in self.optimizer.chained_optimizers:
                    clip_grad_by_total_norm_fp32(optimizer.get_parameters(), self.adamw.clip_grad, grad_norm)
            self.optimizer.step_with_ready_grads()
        return StepResult(loss, grad_norm, applied)

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Mean loss over the micro-batches of all data-parallel processes, which must hold equally many."""
        self.replica.eval()
        return self._run(micro_batches, forward_only=True)

    def agree(self, mine: bool) -> bool:
        """True where every process says true."""
        return bool(self.largest(0 if mine else 1) == 0)

    def largest(self, mine: int) -> int:
        """The largest of all processes' values."""
        value = torch.tensor(mine, device=self.place.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def _run(self, micro_batches: Sequence[MicroBatch], forward_only: bool) -> float:
        losses = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iter(micro_batches),
            model=self.replica,
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0][0].size(1),
            micro_batch_size=micro_batches[0][0].size(0),
            forward_only=forward_only,
        )
        mean = torch.stack(losses).double().mean()
        dist.all_reduce(mean, group=self.place.data_group)
        return float(mean) / self.place.data_size

    def _forward(self, micro_batches: Iterator[MicroBatch], replica: nn.Module) -> tuple[Any, Any]:
        tokens, labels = (t.to(self.place.device, non_blocking=True) for t in next(micro_batches))
        return replica(tokens, labels), partial(_mean_loss, z_loss=self.z_loss)


def _mean_loss(output: tuple[Tensor, Tensor], z_loss: float) -> tuple[Tensor, Tensor]:
    """What is minimised, and what is reported. The z-loss keeps log Z near 0 (Chowdhery et al. 2022, PaLM, section
    5)."""
    nll, log_z = output
    loss = nll.mean()
    reported = loss.detach().clone()  # megatron-core scales the other in place
    return (loss + z_loss * log_z.square().mean() if z_loss else loss), reported


def _annotate(model: nn.Module, specs: dict[str, TensorSpec], sequence_parallel: bool) -> None:
    """Tell megatron-core, by attributes, which parameters are pieces, and which copies see only part of the
    sequence."""
    for name, parameter in model.named_parameters():
        spec = specs[name]
        attributes: dict[str, Any] = {
            "tensor_model_parallel": spec.sharded,
            "partition_dim": spec.axis if spec.sharded else -1,
            "partition_stride": 1,
            "sequence_parallel": sequence_parallel and not spec.sharded,
            "decay": spec.decay,
        }
        for key, value in attributes.items():
            setattr(parameter, key, value)
