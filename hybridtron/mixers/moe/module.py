"""Mixture of experts on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.moe.config import MoEConfig
from hybridtron.ops.elementwise.activations import ACTIVATIONS, clamped_swiglu, swiglu
from hybridtron.ops.elementwise.precision import accumulation_dtype, under_transforms
from hybridtron.ops.fp8.linear import Operands, fp8_grouped_linear
from hybridtron.ops.moe.attached_loss import attach_loss
from hybridtron.ops.moe.grouped_linear import grouped_linear
from hybridtron.ops.moe.routing import (
    balance_loss,
    balancing_step,
    capacity,
    choose,
    combining_weights,
    router_log_scores,
    router_z_loss,
    within_capacity,
)
from hybridtron.ops.opaque import opaque


class MoE(Mixer):
    """Mixture of experts; an expert-parallel rank holds some of the experts and is sent the tokens of others.

    Counts the choices of experts that it has gone backward through in `expert_load`, which whoever trains it reads,
    sets to 0 and, added up over all processes, gives to `rebalance`.
    """

    def __init__(self, config: MoEConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        if "router_bias" not in self.specs:
            self.router_bias = None
        self.shared = config.shared.build(backend) if config.shared else None
        self.fp8: dict[str, Operands] = {}  # of the projections that multiply FP8 numbers
        self.dispatch = backend.dispatcher(config.dispatcher, config.num_experts, config.top_k, config.capacity_factor)
        load = torch.zeros(config.num_experts, dtype=torch.int64, device=self.router_weight.device)
        self.register_buffer("expert_load", load, persistent=False)

    @opaque  # sizes depend on values, and a hook counts choices
    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        config = self.config
        wide = accumulation_dtype(x)
        logits = F.linear(x.to(wide), self.router_weight.to(wide))  # [s, b, experts]
        if config.bias:
            logits = logits + self.router_logit_bias.to(wide)
        log_scores = router_log_scores(logits, config.score)
        chosen = choose(log_scores, config.top_k, self.router_bias, config.num_groups, config.top_groups)
        weights = combining_weights(log_scores, chosen, config.normalizes, config.scaling_factor)
        learns = torch.is_grad_enabled()
        kept, counts = chosen, None
        if config.capacity_factor is not None or (learns and config.aux_weight):
            # The choices of every run of the sequences, of which this process holds one.
            runs = self.backend.gather_runs(chosen.sum(0))  # [runs, b, experts]
            earlier, counts = runs[: self.backend.sequence.rank].sum(0), runs.sum(0)
            if config.capacity_factor is not None:
                limit = capacity(self._seq_len(x), config.num_experts, config.top_k, config.capacity_factor)
                kept = within_capacity(chosen, earlier, limit)
        y = self._routed(x, weights, kept)
        if self.shared is not None:
            shared = self.shared(x)
            y = y + (shared * torch.sigmoid(F.linear(x, self.shared_gate)) if config.shared_gate else shared)
        if not learns:
            return y
        if y.requires_grad and not under_transforms():
            self._count_in_backward(y, chosen)
        return self._with_losses(y, logits, log_scores, counts)

    def core(self, packed: Tensor) -> Tensor:
        config = self.config  # [..., 2f], or [..., f] without gates -> [..., f]
        if config.activation == "clamped_swiglu":
            return clamped_swiglu(packed, config.swiglu_alpha, config.swiglu_limit)
        return swiglu(packed) if config.gated else ACTIVATIONS[config.activation](packed)

    def rebalance(self, load: Tensor) -> None:
        """Move the bias of the choice after a batch whose choices of each expert, over all processes, were `load`."""
        if self.router_bias is not None:
            with torch.no_grad():
                self.router_bias.add_(balancing_step(load, self.config.bias_update_rate))

    def _seq_len(self, x: Tensor) -> int:
        return x.size(0) * self.backend.sequence.size

    def _routed(self, x: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        """Return the sum of the chosen experts' outputs [s, b, h]; they work in the latent space where there is one.

        Every process projects its own tokens, before they are sent and after they come back.
        """
        if not self.config.latent_size:
            return self._experts(x, weights, kept)
        latent = F.linear(x, self.latent_down).to(x.dtype)  # from which autocast may have turned it
        return F.linear(self._experts(latent, weights, kept), self.latent_up)

    def _experts(self, x: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        bias = self.config.bias
        if under_transforms():  # which cannot follow sizes that depend on values: all experts, most of them times 0
            weights = weights * kept
            packed = torch.einsum("sbh,eoh->sbeo", x, self._first())
            inner = self.run_core(packed + self._first("_bias") if bias else packed)
            inner = (inner * weights.unsqueeze(-1)).to(x.dtype)  # [s, b, experts, f]
            y = torch.einsum("sbef,ehf->sbh", inner, self.down)
            return y + weights.to(x.dtype) @ self.down_bias if bias else y
        tokens, weights, kept = x.flatten(0, 1), weights.flatten(0, 1), kept.flatten(0, 1)
        return self.dispatch(tokens, weights, kept, self._own_experts).view_as(x)

    def _own_experts(self, rows: Tensor, counts: list[int], weights: Tensor) -> Tensor:
        """Map rows [n, h] in the order of this process's experts to [n, h], times their weights [n]."""
        packed, own = self._multiply(rows, self.config.in_name, counts), None
        if self.config.bias:
            own = torch.repeat_interleave(torch.tensor(counts), output_size=len(rows))
            own = own.to(rows.device, non_blocking=True)
            packed = packed + self._first("_bias")[own]
        inner = (self.run_core(packed) * weights.unsqueeze(-1)).to(rows.dtype)  # [n, f]
        y = self._multiply(inner, "down", counts)
        return y if own is None else y + self._output_bias(own, weights).to(rows.dtype)

    def _multiply(self, rows: Tensor, name: str, counts: list[int]) -> Tensor:
        """Multiply the rows of each of this process's experts by its weight of a projection."""
        if operands := self.fp8.get(name):
            return fp8_grouped_linear(rows, getattr(self, name), counts, operands)
        return grouped_linear(rows, getattr(self, name), counts)

    def _output_bias(self, own: Tensor, weights: Tensor) -> Tensor:
        """Return the output bias of each row's expert `own` [n], times the row's weight: [n, h].

        It is 0 but in this process's channels, as the outputs of the processes that share an expert are added up.
        """
        shard, bias = self.backend.shards.expert_tensor, self.down_bias[own] * weights.unsqueeze(-1)
        width = bias.shape[1]
        return F.pad(bias, (shard.rank * width, (shard.size - shard.rank - 1) * width))

    def _first(self, suffix: str = "") -> Tensor:
        """Return the weights of the experts' first projection, or with `_bias` its biases."""
        parameter: Tensor = getattr(self, self.config.in_name + suffix)
        return parameter

    def _count_in_backward(self, y: Tensor, chosen: Tensor) -> None:
        """Count choices in the backward pass, which runs once also where activations are computed twice."""
        counts = chosen.sum((0, 1))

        def count(_: Tensor) -> None:
            self.expert_load.add_(counts)

        y.register_hook(count)

    def _with_losses(self, y: Tensor, logits: Tensor, log_scores: Tensor, counts: Tensor | None) -> Tensor:
        config, seq_len = self.config, self._seq_len(y)
        if counts is not None and config.aux_weight:
            y = attach_loss(y, config.aux_weight * balance_loss(log_scores, counts, seq_len, config.top_k))
        if config.z_loss:
            y = attach_loss(y, config.z_loss * router_z_loss(logits, seq_len))
        return y
