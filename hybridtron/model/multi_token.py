"""Multi-token prediction: a module after the last layer that predicts one token further (DeepSeek-AI 2024, arXiv
2412.19437, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual.stream import Stream
from hybridtron.model.tensors import mtp_tensors


class MTPModule(nn.Module):
    """h' = layers(W [norm(h); norm(e)]), with h the residual stream of the model or of the module before, and e the
    embedding of the token one position further than that of h; all [s, b, h].

    `final_norm(h')` is the input of the model's output projection. `make_layer` builds the layer of a block.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        make_layer: Callable[[str], nn.Module],
    ) -> None:
        super().__init__()
        norm = partial(backend.norm, config.norm_spec, zero_centered=config.zero_centered_norms)
        self.hidden_norm, self.embedding_norm, self.final_norm = norm(), norm(), norm()
        self.proj = backend.parameter(mtp_tensors(config)["proj"])
        self.layers = nn.ModuleList(make_layer(block) for block in config.mtp_layer_names)

    def forward(self, h: Tensor, embedded: Tensor, documents: Documents | None = None) -> Tensor:
        x = torch.cat([self.hidden_norm(h), self.embedding_norm(embedded)], -1)
        stream = Stream((F.linear(x, self.proj),), {})
        for layer in self.layers:
            stream = layer(stream, documents)
        return stream.states[0]
