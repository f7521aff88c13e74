"""Gated DeltaNet on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.mixers.delta_rule import DeltaRuleMixer, Parts, RuleInputs, unit
from hybridtron.ops.elementwise.precision import accumulation_dtype


class GatedDeltaNet(DeltaRuleMixer):
    """Gated delta rule; parts of the projection are q, k, v, z, beta and dt."""

    def rule_inputs(self, convolved: Tensor, rest: Parts) -> RuleInputs:
        config, dtype = self.config, accumulation_dtype(convolved)
        q, k, v = convolved.split(self.core_sizes[:3], -1)
        q, k = (part.unflatten(-1, (-1, config.key_size)) for part in (q, k))
        v = v.unflatten(-1, (-1, config.value_size))
        steps = F.softplus(rest["dt"].to(dtype) + self.local_heads("dt_bias"))
        decays = -self.local_heads("A_log").to(dtype).exp() * steps
        strengths = torch.sigmoid(rest["beta"].to(dtype)) * (2 if config.allow_negative else 1)
        return (unit(q) * config.key_size**-0.5, unit(k), v, decays, strengths), {}

    def gate(self, y: Tensor, rest: Parts) -> Tensor:
        return self.norm_and_gate(y, rest["z"].unflatten(-1, (-1, self.config.value_size)), self.config.norm_eps)
