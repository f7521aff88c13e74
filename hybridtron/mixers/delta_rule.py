"""What mixers of the gated delta rule share: short convolutions, the rule, and an output norm with a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridtron.mixers.mixer import ConvState, Mixer
from hybridtron.ops.conv.short_conv import short_conv, short_conv_prefill, short_conv_step
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.delta_product import (
    gated_delta_product,
    gated_delta_product_prefill,
    gated_delta_product_step,
)
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_prefill, gated_delta_rule_step

_L2_EPS = 1e-6  # under the root of the length of queries and keys, as in the authors' code

Parts = dict[str, Tensor]
"""Parts of a core's input [..., channels], by name."""

RuleInputs = tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], dict[str, Any]]
"""q, k, v, g and beta of the gated delta rule, and its further arguments by name."""


class Rule(NamedTuple):
    """Forms of a rule: over whole sequences, over the next tokens, and of one token."""

    whole: Callable[..., Tensor]
    prefill: Callable[..., tuple[Tensor, Tensor]]
    step: Callable[..., tuple[Tensor, Tensor]]


GATED_DELTA_RULE = Rule(gated_delta_rule, gated_delta_rule_prefill, gated_delta_rule_step)
GATED_DELTA_PRODUCT = Rule(gated_delta_product, gated_delta_product_prefill, gated_delta_product_step)


class DeltaRuleMixer(Mixer):
    """A mixer of the gated delta rule; the first parts of the core's input are q, k and v, which are convolved."""

    @property
    def rule(self) -> Rule:
        """Return the rule that `rule_inputs` makes the arguments of."""
        return GATED_DELTA_RULE

    def core(self, packed: Tensor) -> Tensor:
        conv_input, rest = self._split(packed.transpose(0, 1))
        convolved = short_conv(conv_input, self.local_heads("conv_weight"), activation="silu")
        inputs, further = self.rule_inputs(convolved, rest)
        y = self.rule.whole(*inputs, chunk_size=self.config.chunk_size, **further)
        return self.gate(y, rest).transpose(0, 1)

    def initial_state(self, batch: int) -> ConvState:
        config = self.config
        memory = self.zero_state(batch, self.local_count(config.value_heads), config.key_size, config.value_size)
        return ConvState(self.zero_conv_inputs(batch), memory)

    def prefill_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        conv_input, rest = self._split(packed.transpose(0, 1))
        convolved, conv = short_conv_prefill(state.conv, conv_input, self.conv_weight, activation="silu")
        inputs, further = self.rule_inputs(convolved, rest)
        y, memory = self.rule.prefill(state.memory, *inputs, chunk_size=self.config.chunk_size, **further)
        return self.gate(y, rest).transpose(0, 1), ConvState(conv, memory)

    def step_core(self, packed: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        conv_input, rest = self._split(packed)
        convolved, conv = short_conv_step(state.conv, conv_input, self.conv_weight, activation="silu")
        inputs, further = self.rule_inputs(convolved, rest)
        y, memory = self.rule.step(state.memory, *inputs, **further)
        return self.gate(y, rest), ConvState(conv, memory)

    def rule_inputs(self, convolved: Tensor, rest: Parts) -> RuleInputs:
        """Return the arguments of the rule [..., heads, .], from the convolved channels and the other parts."""
        raise NotImplementedError

    def gate(self, y: Tensor, rest: Parts) -> Tensor:
        """Norm and gate the rule's outputs: [..., heads, d] -> [..., heads * d]."""
        raise NotImplementedError

    def _split(self, packed: Tensor) -> tuple[Tensor, Parts]:
        """Split into the channels of the convolutions together, and the other parts by name."""
        convolved, *rest = packed.split([sum(self.core_sizes[:3]), *self.core_sizes[3:]], -1)
        return convolved, dict(zip((part.name for part in self.packing[3:]), rest, strict=True))


def unit(x: Tensor) -> Tensor:
    """Divide x by its length over the last axis, in the dtype of states."""
    wide = x.to(accumulation_dtype(x))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _L2_EPS)
