"""Multi-head Hyena on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.hyena.module import ProjectedHyena
from hybridtron.mixers.mh_hyena.config import MultiHeadHyenaConfig
from hybridtron.ops.conv.outer_conv import outer_conv


class MultiHeadHyena(ProjectedHyena):
    """The outer products of k and v of every head, convolved with its filter and read out by q."""

    def __init__(self, config: MultiHeadHyenaConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        self.head_dim = config.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        return outer_conv(q, k, v, h).flatten(2)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return k, v

    def mix_last(self, q: Tensor, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, *inputs))  # [b, m, d] and [b, s, m, d]
        weights = (q.unsqueeze(1) * k).sum(-1) * h.t()  # [b, s, m]
        return (weights.unsqueeze(-1) * v).sum(1).flatten(1)
