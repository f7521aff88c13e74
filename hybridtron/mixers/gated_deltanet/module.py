"""Gated DeltaNet on a backend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.delta_rule import (
    GATED_DELTA_PRODUCT,
    GATED_DELTA_RULE,
    DeltaRuleMixer,
    Parts,
    Rule,
    RuleInputs,
    unit,
)
from hybridtron.ops.elementwise.precision import accumulation_dtype


class GatedDeltaNet(DeltaRuleMixer):
    """Gated delta rule; parts of the projection are q, k, v, z, beta and dt."""

    @property
    def rule(self) -> Rule:
        return GATED_DELTA_PRODUCT if self.config.householder_steps > 1 else GATED_DELTA_RULE

    def rule_inputs(self, convolved: Tensor, rest: Parts) -> RuleInputs:
        config, dtype = self.config, accumulation_dtype(convolved)
        q, k, v = convolved.split(self.core_sizes[:3], -1)
        q, k = unit(q.unflatten(-1, (-1, config.key_size))), unit(self._per_step(k, config.key_size))
        v, beta = self._per_step(v, config.value_size), self._per_step(rest["beta"], 1).squeeze(-1)
        steps = F.softplus(rest["dt"].to(dtype) + self.local_heads("dt_bias"))
        decays = -self.local_heads("A_log").to(dtype).exp() * steps
        strengths = torch.sigmoid(beta.to(dtype)) * (2 if config.allow_negative else 1)
        q, further = self._corrected(q, k)
        return (q * config.key_size**-0.5, k, v, decays, strengths), further

    def gate(self, y: Tensor, rest: Parts) -> Tensor:
        return self.norm_and_gate(y, rest["z"].unflatten(-1, (-1, self.config.value_size)), self.config.norm_eps)

    def _per_step(self, x: Tensor, size: int) -> Tensor:
        """Split channels into heads [..., heads, size]; of several steps a token, [..., steps, heads, size]."""
        steps = self.config.householder_steps
        if steps == 1:
            return x.unflatten(-1, (-1, size))
        return x.unflatten(-1, (-1, steps, size)).transpose(-3, -2)

    def _corrected(self, q: Tensor, k: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the queries, and the further arguments of the rule, with the corrections of the config."""
        read_key, further = k, {}
        if self.config.read_back:
            read_key = k * self.local_heads("read_back_logit").to(k.dtype).sigmoid().unsqueeze(-1)
            further = {"read_key": read_key, "before_decay": True}
        if self.config.output_correction:
            q = q - self.local_heads("output_correction").to(q.dtype).unsqueeze(-1) * read_key
        return q, further
