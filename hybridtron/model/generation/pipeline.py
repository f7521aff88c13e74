"""Generation from a model whose stages lie over the processes of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybridtron.mixers.mixer import State
from hybridtron.model.language_model import LanguageModel, pieces
from hybridtron.model.layer import Layer
from hybridtron.model.residual.stream import Packing, Stream


class Generator(Protocol):
    """Reads tokens and goes on from the state after them: a `LanguageModel`, or the `Pipeline` of its stages."""

    def initial_state(self, batch: int) -> list[State]: ...

    def prefill(
        self, tokens: Tensor, state: list[State], *, all_logits: bool = False
    ) -> tuple[Tensor, list[State]]: ...

    def step(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]: ...

    def zero_logits(self, batch: int) -> Tensor: ...


class Pipeline:
    """All stages of a model, of which every process of a pipeline has some.

    All processes make the same calls, keep the state of their own layers and get the same logits. Stage k is that of
    process k modulo their number. The stream goes from stage to stage, and the logits go from the last one to all.
    """

    def __init__(self, chunks: Sequence[LanguageModel], group: dist.ProcessGroup) -> None:
        self.chunks, self.group = list(chunks), group
        self.modules = nn.ModuleList(chunks)
        self.rank, self.size = group.rank(), group.size()

    def initial_state(self, batch: int) -> list[State]:
        """Return the state of every layer of this process before the first token."""
        return [state for chunk in self.chunks for state in chunk.initial_state(batch)]

    def zero_logits(self, batch: int) -> Tensor:
        """Return zeros [b, vocabulary] where the logits of so many sequences are made."""
        return self.chunks[0].zero_logits(batch)

    def prefill(self, tokens: Tensor, state: list[State], *, all_logits: bool = False) -> tuple[Tensor, list[State]]:
        """Map the next tokens, ids [b, s], to logits and the new state; see `LanguageModel.prefill`."""
        parts: list[Tensor] = []
        with self._whole_sequences():
            for piece in pieces(tokens):
                x, state = self._through(Layer.prefill, piece, state)
                parts = [*parts, x] if all_logits else [x]
            logits = self._last.next_logits(torch.cat(parts), all_logits=all_logits) if self._has_last else None
        shape = tokens.shape if all_logits else tokens.shape[:1]
        return self._from_last(logits, shape), state

    def step(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Map the next token of every sequence, ids [b], to logits and the new state; see `LanguageModel.step`."""

        def step(layer: Layer, stream: Stream, own: State) -> tuple[Stream, State]:
            after, own = layer.step(_each(stream, lambda t: t.squeeze(0)), own)
            return _each(after, lambda t: t.unsqueeze(0)), own

        with self._whole_sequences():
            x, state = self._through(step, tokens.unsqueeze(1), state)
            logits = self._last.next_logits(x) if self._has_last else None
        return self._from_last(logits, tokens.shape), state

    @property
    def _last(self) -> LanguageModel:
        return self.chunks[-1]

    @property
    def _has_last(self) -> bool:
        return self.rank == self.size - 1

    def _whole_sequences(self) -> AbstractContextManager[None]:
        """Leave all tokens to every tensor-parallel rank meanwhile, in all stages at once: they share a backend."""
        return self.chunks[0].backend.whole_sequences(self.modules)

    def _through(
        self,
        function: Callable[[Layer, Stream, State], tuple[Stream, State]],
        tokens: Tensor,
        state: list[State],
    ) -> tuple[Tensor, list[State]]:
        """Send ids [b, s] through all stages; return the input of the final norm [s, b, h], which only the last stage's
        process has, and the new state."""
        after: list[State] = []
        x = sent = self.zero_logits(0)
        for chunk in self.chunks:
            packing = replace(chunk.packing, sequence=False)
            if chunk.stage.is_first:
                stream = chunk.begin(chunk.embed(tokens))
            else:
                if self.size > 1:
                    sent = self._receive(packing, tokens)
                stream = packing.unpack(sent, chunk.stage.start)
            own = state[len(after) : len(after) + len(chunk.layer_list)]
            stream, own = chunk.advance(function, stream, own)
            after += own
            if chunk.stage.is_last:
                x = chunk.end(stream)
                continue
            sent = packing.pack(stream, chunk.stage.stop).contiguous()
            if self.size > 1:
                dist.send(sent, group=self.group, group_dst=(self.rank + 1) % self.size)
        return x, after

    def _receive(self, packing: Packing, tokens: Tensor) -> Tensor:
        """Receive what the stage before packed, [s, b, width]."""
        packed = self.zero_logits(0).new_empty(*tokens.t().shape, packing.width)
        dist.recv(packed, group=self.group, group_src=(self.rank - 1) % self.size)
        return packed

    def _from_last(self, logits: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Return the logits [..., vocabulary] of the last stage's process on every one."""
        like = self.zero_logits(0)
        whole = like.new_empty(*shape, like.shape[1]) if logits is None else logits.contiguous()
        dist.broadcast(whole, group=self.group, group_src=self.size - 1)
        return whole


def _each(stream: Stream, function: Callable[[Tensor], Tensor]) -> Stream:
    """Return the stream with a function applied to every tensor of it."""
    carried = {name: function(value) for name, value in stream.carried.items()}
    return Stream(tuple(map(function, stream.states)), carried)
