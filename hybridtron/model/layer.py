"""A layer: a mixer with its norm, and how it reads from and writes to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.mixer import recompute as recomputed
from hybridtron.model.residual import plain
from hybridtron.model.residual.stream import Stream


class Layer(nn.Module):
    """A mixer with its norm and its place in the residual stream, stream -> stream.

    The norm stands before the mixer, or after it where the block says so. `recompute` is what the backward pass
    recomputes: none, selective (inside the mixer's cores) or full.
    """

    def __init__(
        self, block: MixerConfig, norm: nn.Module, residual: plain.Layer, backend: Backend, recompute: str = "none"
    ) -> None:
        super().__init__()
        self.norm = norm
        self.residual = residual
        self.post_norm = block.norm_position == "post"
        self.carries = bool(block.carries)
        self.recompute = recompute
        self.mixer = block.build(backend)
        for module in self.mixer.modules():
            if isinstance(module, Mixer):
                module.recompute_core = recompute == "selective"

    def forward(self, stream: Stream, documents: Documents | None = None) -> Stream:
        compute = partial(self.compute, documents=documents)
        return recomputed(compute, stream) if self.recompute == "full" else compute(stream)

    def compute(self, stream: Stream, documents: Documents | None = None) -> Stream:
        """Map the stream before the layer to that after it, without recomputation of the whole layer."""
        x, mixing = self._read(stream)
        if self.carries:
            y, carried = self.mixer(x, documents, stream.carried)
        else:
            y, carried = self.mixer(x, documents), stream.carried
        return self._write(stream, y, mixing, carried)

    def prefill(self, stream: Stream, state: State) -> tuple[Stream, State]:
        """Map the next tokens of every sequence, [s, b, ...] -> [s, b, ...]; see `hybridtron.mixers.mixer`."""
        return self._advance(self.mixer.prefill, stream, state)

    def step(self, stream: Stream, state: State) -> tuple[Stream, State]:
        """Map the next token of every sequence, [b, ...] -> [b, ...]; see `hybridtron.mixers.mixer`."""
        return self._advance(self.mixer.step, stream, state)

    def _advance(self, function: Callable[..., Any], stream: Stream, state: State) -> tuple[Stream, State]:
        """Generate by a function of the mixer."""
        x, mixing = self._read(stream)
        if self.carries:
            y, state, carried = function(x, state, stream.carried)
        else:
            (y, state), carried = function(x, state), stream.carried
        return self._write(stream, y, mixing, carried), state

    def _read(self, stream: Stream) -> tuple[Tensor, Any]:
        """Return the input of the mixer, and what the residual topology needs to write its output."""
        return self.residual.read(stream.states, _same if self.post_norm else self._norm)

    def _write(self, stream: Stream, y: Tensor, mixing: Any, carried: Mapping[str, Tensor]) -> Stream:
        """Return the stream after the layer, from the output of the mixer."""
        return Stream(self.residual.write(stream.states, self._norm(y) if self.post_norm else y, mixing), carried)

    def _norm(self, x: Tensor) -> Tensor:
        """Norm all tokens [s, b, h] or one token of every sequence [b, h]."""
        return plain.apply_norm(self.norm, x)


def _same(x: Tensor) -> Tensor:
    return x
