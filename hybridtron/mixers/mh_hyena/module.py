"""Multi-head Hyena on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.hyena.module import ProjectedHyena
from hybridtron.ops.conv.outer_conv import outer_conv, outer_conv_prefill


class MultiHeadHyena(ProjectedHyena):
    """The outer products of k and v of every head, convolved with its filter and read out by q."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        return outer_conv(*self._heads(q, k, v), h).flatten(2)

    def mix_more(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return outer_conv_prefill(*self._heads(q, *inputs), h).flatten(2)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return k, v

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        q, k, v = self._heads(q, *inputs)  # [b, m, d] and [b, s, m, d]
        weights = (q.unsqueeze(1) * k).sum(-1) * h.t()  # [b, s, m]
        return (weights.unsqueeze(-1) * v).sum(1).flatten(1)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map each of [..., channels] to [..., heads, d]."""
        size = (-1, self.config.head_dim)
        return q.unflatten(-1, size), k.unflatten(-1, size), v.unflatten(-1, size)
