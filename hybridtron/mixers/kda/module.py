"""Kimi Delta Attention on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.delta_rule import DeltaRuleMixer, Parts, RuleInputs, unit
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype


class KDA(DeltaRuleMixer):
    """Gated delta rule with decays by channel; parts of the core's input are q, k, v, beta, decay and gate,
    those of low rank last."""

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        parts = [self.in_proj(x)]
        for name, rank in self.config.ranks.items():
            if rank:
                parts.append(getattr(self, f"{name}_up")(F.linear(x, getattr(self, f"{name}_down"))))
        return torch.cat(parts, -1)

    def rule_inputs(self, convolved: Tensor, rest: Parts) -> RuleInputs:
        config, dtype = self.config, accumulation_dtype(convolved)
        q, k, v = convolved.split(self.core_sizes[:3], -1)
        q, k = (part.unflatten(-1, (-1, config.key_size)) for part in (q, k))
        v = v.unflatten(-1, (-1, config.value_size)).to(dtype)
        q, k, decays = unit(q) * config.key_size**-0.5, unit(k), self._log_decays(rest["decay"].to(dtype))
        strengths = {name: rest[name].to(dtype).sigmoid() for name in ("beta", "erase", "write") if name in rest}
        most = 2 if config.allow_negative else 1
        if strengths.keys() == {"beta"}:
            return (q, k, v, decays, strengths["beta"] * most), {}
        erase, write = (
            strengths[name if name in strengths else "beta"].unflatten(-1, (q.shape[-2], -1))
            for name in ("erase", "write")
        )  # [..., heads, channels or 1]
        return (q, k, v * write, decays, torch.ones_like(decays[..., 0])), {"read_key": k * erase * most}

    def gate(self, y: Tensor, rest: Parts) -> Tensor:
        config, gate = self.config, rest["gate"].unflatten(-1, (-1, self.config.value_size))
        normed = rms_norm(y, self.of_all_heads("norm_weight"), config.norm_eps or self.backend.norm_eps)
        return (normed * gate.to(y.dtype).sigmoid()).to(gate.dtype).flatten(-2)

    def _log_decays(self, decay: Tensor) -> Tensor:
        """Map the decay part [..., heads * n] to log decays [..., heads, n]."""
        bound = self.config.gate_lower_bound
        biased = (decay + self.local_heads("dt_bias")).unflatten(-1, (-1, self.config.key_size))
        rates = self.local_heads("A_log").to(decay.dtype).exp().unsqueeze(-1)
        return -rates * F.softplus(biased) if bound is None else bound * torch.sigmoid(rates * biased)
