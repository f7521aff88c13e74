"""A decoder-only language model: embedding, pattern of layers, final norm, output projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridtron.backends.base import Backend, RMSNorm
from hybridtron.documents import Documents
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.mixer import recompute as recomputed
from hybridtron.model.config import ModelConfig
from hybridtron.model.stage import Stage, whole
from hybridtron.model.tensors import model_tensors

PREFILL_TOKENS = 4096  # of all sequences, read at a time


class Layer(nn.Module):
    """x + m mixer(norm(x)), or x + m norm(mixer(x)) where the block says so, [s, b, h] -> [s, b, h].

    m is `multiplier`. `recompute` is what the backward pass recomputes: none, selective (inside the mixer's cores) or
    full.
    """

    def __init__(
        self, block: MixerConfig, norm: nn.Module, backend: Backend, recompute: str = "none", multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.norm = norm
        self.post_norm = block.norm_position == "post"
        self.recompute = recompute
        self.mixer = block.build(backend)
        for module in self.mixer.modules():
            if isinstance(module, Mixer):
                module.recompute_core = recompute == "selective"

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        forward = partial(self._forward, documents=documents)
        return recomputed(forward, x) if self.recompute == "full" else forward(x)

    def _forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        y = self.norm(self.mixer(x, documents)) if self.post_norm else self.mixer(self.norm(x), documents)
        return self._add(x, y)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next tokens of every sequence, [s, b, h] -> [s, b, h]; see `hybridtron.mixers.mixer`."""
        y, state = self.mixer.prefill(x if self.post_norm else self.norm(x), state)
        return self._add(x, self.norm(y) if self.post_norm else y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next token of every sequence, [b, h] -> [b, h]; see `hybridtron.mixers.mixer`."""
        if self.post_norm:
            y, state = self.mixer.step(x, state)
            return self._add(x, self._norm_token(y)), state
        y, state = self.mixer.step(self._norm_token(x), state)
        return self._add(x, y), state

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + (y if self.multiplier == 1 else y * self.multiplier)

    def _norm_token(self, x: Tensor) -> Tensor:
        return self.norm.step(x) if isinstance(self.norm, RMSNorm) else self.norm(x.unsqueeze(0)).squeeze(0)


class LanguageModel(nn.Module):
    """The layers of one stage, by default all. Parameters come uninitialised: see `hybridtron.model.initialize`.

    Their names do not depend on the stage. `recompute` gives, for a block, what its backward pass recomputes: none,
    selective (the mixer's core operation) or full. A stage that is not the first takes its input by `set_input_tensor`.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        stage: Stage | None = None,
        recompute: Callable[[str], str] = lambda block: "none",
    ) -> None:
        super().__init__()
        specs = model_tensors(config)
        self.stage = stage = stage or whole(config)
        self.tied = config.tie_embeddings
        self.embedding_multiplier, self.logits_scaling = config.embedding_multiplier, config.logits_scaling
        if stage.is_first or (stage.is_last and self.tied):
            self.embedding = backend.embedding(specs["embedding.weight"])
        self.layers = nn.ModuleDict(
            {
                str(i): Layer(
                    config.blocks[config.layer_names[i]],
                    backend.norm(specs[f"layers.{i}.norm.weight"], zero_centered=config.zero_centered_norms),
                    backend,
                    recompute(config.layer_names[i]),
                    config.residual_multiplier,
                )
                for i in range(stage.start, stage.stop)
            }
        )
        if stage.is_last:
            self.final_norm = backend.norm(specs["final_norm.weight"], zero_centered=config.zero_centered_norms)
            head = specs["embedding.weight" if self.tied else "head.weight"]
            self.head = backend.column_linear(head, shared=self.tied)
        self.projected_cross_entropy = backend.projected_cross_entropy
        self.gather_logits = backend.gather_logits
        self.received: Tensor | None = None
        self.forward_context: Callable[[], AbstractContextManager[None]] = nullcontext  # of the layers

    def set_input_tensor(self, received: Sequence[Tensor | None]) -> None:
        """Set the output [s, b, h] of the stage before, as the only entry."""
        (self.received,) = received

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, documents: Documents | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map token ids [b, s] to logits [s, b, vocabulary of this rank], or to the output [s, b, h] of a stage before
        the last.

        With labels, the ids that follow them [b, s]: loss and log partition function, each [s, b] in float32. With
        `documents`, those that the sequences consist of, layers treat each as a sequence by itself.
        """
        x = self.embed(tokens) if self.stage.is_first else self.received  # [s, b, h]
        assert x is not None
        with self.forward_context():
            for layer in self.layers.values():
                x = layer(x, documents)
        if not self.stage.is_last:
            return x
        if labels is None:
            return self._project(x)
        return self.projected_cross_entropy(self.head, self._norm(x), self._tied_weight, labels.transpose(0, 1))

    def embed(self, tokens: Tensor) -> Tensor:
        """Map token ids [b, s] to the residual stream before the first layer [s, b, h]."""
        x: Tensor = self.embedding(tokens)
        return x if self.embedding_multiplier == 1 else x * self.embedding_multiplier

    def _norm(self, x: Tensor) -> Tensor:
        """Map the residual stream after the last layer [s, b, h] to the input of the output projection."""
        x = self.final_norm(x)
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
        """Return the state of every layer before the first token."""
        return [layer.mixer.initial_state(batch) for layer in self._layers()]

    def prefill(self, tokens: Tensor, state: list[State], *, all_logits: bool = False) -> tuple[Tensor, list[State]]:
        """Map the next tokens of every sequence, ids [b, s], to the logits [b, vocabulary] after the last one, or
        [b, s, vocabulary] after each, and the new state.

        As `step` for each of them, but in parallel: in pieces of at most PREFILL_TOKENS, so that memory does not grow
        with the length of a prompt. For a model that lies in one process; the state handed in is used up.
        """
        parts: list[Tensor] = []
        states = list(state)
        for piece in tokens.split(max(1, PREFILL_TOKENS // len(tokens)), 1):
            x = self.embed(piece)  # [s, b, h]
            for i, layer in enumerate(self._layers()):
                x, states[i] = layer.prefill(x, states[i])
            parts = [*parts, x] if all_logits else [x[-1:]]
        logits = self.gather_logits(self._project(torch.cat(parts))).transpose(0, 1)
        return logits if all_logits else logits[:, 0], states

    def step(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Map the next token of every sequence, ids [b], to the logits [b, vocabulary] after it and the new state.

        For a model that lies in one process; the state handed in is used up.
        """
        x, after = self.embed(tokens.unsqueeze(1)).squeeze(0), []  # [b, h]
        for layer, before in zip(self._layers(), state, strict=True):
            x, own = layer.step(x, before)
            after.append(own)
        return self.gather_logits(self._project(x.unsqueeze(0))).squeeze(0), after

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers.values() if isinstance(layer, Layer)]

    def logits(self, tokens: Tensor) -> Tensor:
        """Map token ids [b, s] to logits [b, s, vocabulary]."""
        return self.gather_logits(self(tokens)).transpose(0, 1)
