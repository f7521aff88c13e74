"""A decoder-only language model: embedding, pattern of layers, final norm, output projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.mixers.mixer import State
from hybridtron.model.activation_offload import ActivationOffload
from hybridtron.model.config import ModelConfig
from hybridtron.model.layer import Layer
from hybridtron.model.multi_token import MTPModule
from hybridtron.model.residual import plain
from hybridtron.model.residual.build import residual_end, residual_layer
from hybridtron.model.residual.stream import Packing, Stream
from hybridtron.model.stage import Stage, whole
from hybridtron.model.tensors import model_tensors

PREFILL_TOKENS = 4096  # of all sequences, read at a time


def pieces(tokens: Tensor) -> Sequence[Tensor]:
    """Cut ids [b, s] into runs of the sequences that are read at a time."""
    return tokens.split(max(1, PREFILL_TOKENS // len(tokens)), 1)


class LanguageModel(nn.Module):
    """The layers of one stage, by default all. Parameters come uninitialised: see `hybridtron.model.initialize`.

    Their names do not depend on the stage. `recompute` gives, for a block, what its backward pass recomputes: none,
    selective (the mixer's core operation) or full. A stage that is not the first takes its input by `set_input_tensor`.
    `travelling_width` is the width of the tensor that travels between stages, by default that of the stream.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        stage: Stage | None = None,
        recompute: Callable[[str], str] = lambda block: "none",
        travelling_width: int = 0,
    ) -> None:
        super().__init__()
        specs = model_tensors(config)
        self.packing = Packing(config, backend.shards.tensor.size, backend.sequence_parallel, travelling_width)
        self.stage = stage = stage or whole(config)
        self.tied = config.tie_embeddings
        self.embedding_multiplier, self.logits_scaling = config.embedding_multiplier, config.logits_scaling
        self.last_stage_embeds = config.last_stage_embeds
        if stage.is_first or (stage.is_last and config.last_stage_embeds):
            self.embedding = backend.embedding(specs["embedding.weight"])
        norm = partial(backend.norm, config.norm_spec, zero_centered=config.zero_centered_norms)
        self.residual_end = residual_end(config, backend, stage.is_last)
        self.layers = nn.ModuleDict(
            {
                str(i): Layer(
                    config.layer_block(i),
                    norm() if config.residual.has_norm(i) else nn.Identity(),
                    residual_layer(config, i, backend),
                    backend,
                    recompute(config.layer_names[i]),
                )
                for i in range(stage.start, stage.stop)
            }
        )
        self.mtp_depth = config.mtp.depth if config.mtp and stage.is_last else 0
        if stage.is_last:
            if config.mtp:
                self.mtp = self._mtp_modules(config, backend, recompute)
            self.final_norm = norm()
            head = specs["embedding.weight" if self.tied else "head.weight"]
            self.head = backend.column_linear(head, shared=self.tied)
        self.backend = backend
        self.received: Tensor | None = None
        self.forward_context: Callable[[], AbstractContextManager[None]] = nullcontext  # of the layers
        self.offload: ActivationOffload | None = None  # of what the layers save

    def _mtp_modules(self, config: ModelConfig, backend: Backend, recompute: Callable[[str], str]) -> nn.ModuleList:
        """Build the modules for multi-token prediction, whose layers have a plain residual stream."""

        def layer(block: str) -> Layer:
            norm = backend.norm(config.norm_spec, zero_centered=config.zero_centered_norms)
            return Layer(config.blocks[block], norm, plain.Layer(config, 0, backend), backend, recompute(block))

        return nn.ModuleList(MTPModule(config, backend, layer) for _ in range(config.mtp_modules))

    def set_input_tensor(self, received: Sequence[Tensor | None]) -> None:
        """Set the output [s, b, width] of the stage before, as the only entry."""
        (self.received,) = received

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, documents: Documents | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Map token ids [b, s] to logits [s, b, vocabulary of this rank], or to the output [s, b, width] of a stage
        before the last.

        With labels, the ids that follow them [b, s]: loss and log partition function, each [s, b] in float32. With
        `documents`, those that the sequences consist of, layers treat each as a sequence by itself.

        With as many more labels as the depth of `model.mtp`, [b, s + depth]: also the losses of the tokens 1, 2, ...
        positions further, [depth, s, b]. Those of positions without such a token mean nothing.
        """
        if self.stage.is_first:
            stream = self.begin(self.embed(tokens))
        else:
            assert self.received is not None
            stream = self.packing.unpack(self.received, self.stage.start)
        with self.forward_context():
            stream = self.run_layers(stream, documents)
        if not self.stage.is_last:
            return self.packing.pack(stream, self.stage.stop)
        x = self.end(stream)
        if labels is None:
            return self._project(x)
        run = tokens.size(1)
        losses = self._losses(self._norm(x), labels[:, :run])
        if labels.size(1) == run:
            return losses
        return *losses, torch.stack(self._further_losses(x, labels, run, documents))

    def _losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and log partition function [s, b] of labels [b, s], from the input of the output projection."""
        return self.backend.projected_cross_entropy(self.head, x, self._tied_weight, labels.transpose(0, 1))

    def _further_losses(self, h: Tensor, labels: Tensor, run: int, documents: Documents | None) -> list[Tensor]:
        """Return the loss [s, b] of multi-token prediction at each depth, from the residual stream after the last
        layer."""
        losses = []
        for depth in range(1, labels.size(1) - run + 1):
            module: Any = self.mtp[min(depth, len(self.mtp)) - 1]
            h = module(h, self.embed(labels[:, depth - 1 : depth - 1 + run]), documents)
            losses.append(self._losses(self._scaled(module.final_norm(h)), labels[:, depth : depth + run])[0])
        return losses

    def embed(self, tokens: Tensor) -> Tensor:
        """Map token ids [b, s] to the residual stream before the first layer [s, b, h]."""
        x: Tensor = self.embedding(tokens)
        return x if self.embedding_multiplier == 1 else x * self.embedding_multiplier

    def begin(self, x: Tensor) -> Stream:
        """Return the stream before the first layer, from the embedded tokens [s, b, h] or [b, h]."""
        return Stream(self.residual_end.begin(x), {})

    def run_layers(self, stream: Stream, documents: Documents | None = None) -> Stream:
        """Map the stream before this stage's first layer to that after its last one."""
        if self.offload and torch.is_grad_enabled():
            return self.offload.run(stream, documents)
        for layer in self.layers.values():
            stream = layer(stream, documents)
        return stream

    def end(self, stream: Stream) -> Tensor:
        """Map the stream after the last layer to the input of the final norm, [s, b, h] or [b, h]."""
        x: Tensor = self.residual_end(stream.states)
        return x

    def _norm(self, x: Tensor) -> Tensor:
        """Map the residual stream after the last layer [s, b, h] to the input of the output projection."""
        return self._scaled(self.final_norm(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.logits_scaling == 1 else x / self.logits_scaling

    def _project(self, x: Tensor) -> Tensor:
        """Map the residual stream after the last layer [s, b, h] to logits [s, b, vocabulary of this rank]."""
        logits: Tensor = self.head(self._norm(x), self._tied_weight)
        return logits

    @property
    def _tied_weight(self) -> Tensor | None:
        """Return the weight of the embedding where it is that of the output projection too."""
        weight: Any = self.embedding.weight if self.tied else None
        return weight

    def initial_state(self, batch: int) -> list[State]:
        """Return the state of every layer of this stage before the first token."""
        return [layer.mixer.initial_state(batch) for layer in self.layer_list]

    def prefill(self, tokens: Tensor, state: list[State], *, all_logits: bool = False) -> tuple[Tensor, list[State]]:
        """Map the next tokens of every sequence, ids [b, s], to the logits [b, vocabulary] after the last one, or
        [b, s, vocabulary] after each, and the new state.

        As `step` for each of them, but in parallel: in pieces of at most PREFILL_TOKENS, so that memory does not grow
        with the length of a prompt. The state handed in is used up. For all stages: see
        `hybridtron.model.generation.pipeline`.
        """
        parts: list[Tensor] = []
        with self.backend.whole_sequences(self):
            for piece in pieces(tokens):
                stream, state = self.advance(Layer.prefill, self.begin(self.embed(piece)), state)
                x = self.end(stream)  # [s, b, h]
                parts = [*parts, x] if all_logits else [x[-1:]]
            return self.next_logits(torch.cat(parts), all_logits=all_logits), state

    def step(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Map the next token of every sequence, ids [b], to the logits [b, vocabulary] after it and the new state.

        The state handed in is used up.
        """
        with self.backend.whole_sequences(self):
            x = self.embed(tokens.unsqueeze(1)).squeeze(0)
            stream, state = self.advance(Layer.step, self.begin(x), state)
            return self.next_logits(self.end(stream).unsqueeze(0)), state

    def advance(
        self, function: Callable[[Layer, Stream, State], tuple[Stream, State]], stream: Stream, state: Sequence[State]
    ) -> tuple[Stream, list[State]]:
        """Map the stream before this stage's first layer to that after its last one; return each layer's state too.

        `function` is `Layer.prefill` or `Layer.step`.
        """
        after = []
        for layer, own in zip(self.layer_list, state, strict=True):
            stream, own = function(layer, stream, own)
            after.append(own)
        return stream, after

    def next_logits(self, x: Tensor, *, all_logits: bool = False) -> Tensor:
        """Map the input of the final norm [s, b, h] to the logits after the last token [b, vocabulary], or after each
        [b, s, vocabulary]."""
        logits = self.backend.gather_logits(self._project(x)).transpose(0, 1)
        return logits if all_logits else logits[:, -1]

    def zero_logits(self, batch: int) -> Tensor:
        """Return zeros [b, vocabulary] where the logits of so many sequences are made."""
        return next(self.parameters()).new_zeros(batch, self.packing.config.vocab_size, dtype=self.backend.dtype)

    @property
    def layer_list(self) -> list[Layer]:
        """Return the layers of this stage."""
        return [layer for layer in self.layers.values() if isinstance(layer, Layer)]

    def logits(self, tokens: Tensor) -> Tensor:
        """Map token ids [b, s] to logits [b, s, vocabulary]."""
        return self.backend.gather_logits(self(tokens)).transpose(0, 1)
