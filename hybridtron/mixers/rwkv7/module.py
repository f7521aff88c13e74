"""RWKV-7's time mixing on a backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.rwkv7.config import FIRST_VALUE, LOW_RANK, MIXED
from hybridtron.mixers.token_shift import before_each, before_each_next
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear import linear
from hybridtron.ops.linear_attention.rwkv7 import rwkv7, rwkv7_prefill, rwkv7_step

_STRONGEST = -math.exp(-0.5)  # log of the smallest decay
_NORM_EPS = 1e-5  # per channel of a head, as in the authors' code

Carried = Mapping[str, Tensor]


class RWKV7State(NamedTuple):
    before: Tensor  # the token before the next one [b, h]
    heads: Tensor  # [b, heads, d, d]


class _Inputs(NamedTuple):
    """Arguments of `rwkv7` and its forms, each [..., heads, d]."""

    receptance: Tensor
    log_decay: Tensor
    key: Tensor
    value: Tensor
    reader: Tensor  # a, minus the unit key
    writer: Tensor  # b, the unit key times its rate


class RWKV7(Mixer):
    """RWKV-7 time mixing; parts of the core's input are r, w, k, v, a and g.

    `forward`, `prefill` and `step` return `carried` too where it is handed in; without it values stand for those of the
    first layer.
    """

    def forward(self, x: Tensor, documents: Documents | None = None, carried: Carried | None = None) -> Any:
        x = self.backend.to_local_heads(x)
        packed, carried = self._project(x, before_each(x, self.backend, documents), carried)
        y = self.project_out(self.over_sequence(packed, documents))
        return y if carried is None else (y, carried)

    def core(self, packed: Tensor) -> Tensor:
        inputs, gate = self._inputs(packed.transpose(0, 1))  # [b, s, heads, d]
        return self._output(rwkv7(*inputs, self.config.chunk_size), inputs, gate).transpose(0, 1)

    def initial_state(self, batch: int) -> RWKV7State:
        config = self.config
        heads = self.zero_state(batch, self.local_count(config.num_heads), config.head_dim, config.head_dim)
        return RWKV7State(self.mix_key.new_zeros(batch, config.hidden_size), heads)

    def prefill(self, x: Tensor, state: RWKV7State, carried: Carried | None = None) -> Any:
        packed, carried = self._project(x, before_each_next(x, state.before), carried)
        inputs, gate = self._inputs(packed.transpose(0, 1))  # [b, s, heads, d]
        y, heads = rwkv7_prefill(state.heads, *inputs, self.config.chunk_size)
        y = self.project_out(self._output(y, inputs, gate).transpose(0, 1))
        state = RWKV7State(x[-1].clone(), heads)
        return (y, state) if carried is None else (y, state, carried)

    def step(self, x: Tensor, state: RWKV7State, carried: Carried | None = None) -> Any:
        packed, carried = self._project(x, state.before, carried)
        inputs, gate = self._inputs(packed)  # [b, heads, d]
        y, heads = rwkv7_step(state.heads, *inputs)
        y = self.project_out(self._output(y, inputs, gate).unsqueeze(0)).squeeze(0)
        state = RWKV7State(x, heads)
        return (y, state) if carried is None else (y, state, carried)

    def _project(self, x: Tensor, before: Tensor, carried: Carried | None) -> tuple[Tensor, Carried | None]:
        """Map tokens and those before them, [..., h] each, to the parts of this rank [..., 6 heads * d], and return
        what later layers are handed."""
        change = before - x
        mixed = {name: x + change * self.of_all_heads(f"mix_{name}") for name in MIXED}
        parts = {
            name: self._low_rank(name, each) if name in LOW_RANK else linear(each, getattr(self, f"{name}_weight"))
            for name, each in mixed.items()
        }
        if self.config.value_residual:
            value = parts["value"]
            first = value if carried is None else carried.get(FIRST_VALUE, value)
            share = torch.sigmoid(self._low_rank("value", mixed["value"]) + self.value_base)
            parts["value"] = value + (first - value) * share
            if carried is not None and FIRST_VALUE not in carried:
                carried = {**carried, FIRST_VALUE: value}
        return torch.cat(list(parts.values()), -1), carried

    def _low_rank(self, name: str, x: Tensor) -> Tensor:
        """Map [..., h] to [..., heads * d] by way of a few channels."""
        low = linear(x, self.of_all_heads(f"{name}_down"))
        if name in ("decay", "gate"):
            low = torch.tanh(low) if name == "decay" else torch.sigmoid(low)
        return linear(low, getattr(self, f"{name}_up"))

    def _inputs(self, packed: Tensor) -> tuple[_Inputs, Tensor]:
        """Split [..., 6 heads * d] into what the state reads and writes, and the output gate [..., heads, d]."""
        r, w, k, v, a, g = packed.unflatten(-1, (6, -1, self.config.head_dim)).unbind(-3)
        wide = accumulation_dtype(packed)
        log_decay = _STRONGEST * torch.sigmoid(w.to(wide) + self._per_head("decay_base"))
        rate = torch.sigmoid(a.to(wide) + self._per_head("rate_base"))
        unit = F.normalize(k.to(wide) * self._per_head("key_scale"), dim=-1)
        key = k * (1 + (rate - 1) * self._per_head("key_rate"))
        return _Inputs(r, log_decay, key, v, -unit, unit * rate), g

    def _output(self, y: Tensor, inputs: _Inputs, gate: Tensor) -> Tensor:
        """Norm [..., heads, d] head by head, add the current token's bonus, and gate: -> [..., heads * d]."""
        wide, head_dim = accumulation_dtype(y), self.config.head_dim
        normed = F.layer_norm(y.to(wide), (head_dim,), eps=head_dim * _NORM_EPS)
        normed = normed * self._per_head("norm_weight") + self._per_head("norm_bias")
        bonus = (inputs.receptance * inputs.key * self._per_head("current_bonus")).sum(-1, keepdim=True) * inputs.value
        return ((normed + bonus) * gate).flatten(-2).to(gate.dtype)

    def _per_head(self, name: str) -> Tensor:
        """Return a parameter of this process's heads as [heads, d]."""
        return self.local_heads(name).unflatten(0, (-1, self.config.head_dim))
