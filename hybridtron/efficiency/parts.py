"""What is timed: a whole model, or each of its distinct layers by itself and what stands at its ends.

A model's time by parts is the sum over its layers. So models can be measured that do not fit the machine whole, and
layers that several models share are measured once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hybridtron.accounting.layer_table import ENDS
from hybridtron.backends.torch import TorchBackend
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.mixers.state_rows import reserve
from hybridtron.model.generation.step_plan import StepPlan, plan_layer_steps, plan_steps
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.layer import Layer
from hybridtron.model.residual.stream import Stream
from hybridtron.model.stage import Stage, whole
from hybridtron.training.config import RunConfig

ROOM = 64  # tokens that a part can go on by after its prompt, before its caches grow


class Part:
    """A module that is trained, reads a prompt and goes on by single tokens, on random input of one size.

    `prefill` makes the state that `decode` goes on from, once `make_room` has given its caches memory for that.
    """

    def __init__(self, name: str, config: RunConfig, stage: Stage, device: torch.device) -> None:
        self.name, self.config, self.device = name, config, device
        backend = TorchBackend(config.precision.dtype, device, config.model.norm_eps)
        self.model = LanguageModel(config.model, backend, stage)
        initialize(self.model, config.model, config.seed)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True) if trained else None
        self.state: Any = None
        self.plan: StepPlan | None = None  # of steps from the state
        self.state_bytes = 0  # of the tensors of the state after the prompt, per sequence

    def prepare(self, batch: int, length: int) -> None:
        """Make the input of so many sequences of so many tokens."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.config.model.vocab_size, (batch, length + 1), generator=generator)
        self.tokens = tokens.to(self.device)
        self.state = None

    def release(self) -> None:
        """Drop the state and all gradients."""
        self.state = self.plan = None
        self.model.zero_grad(set_to_none=True)

    def train(self) -> None:
        """Make one training step: forward, backward, AdamW."""
        self.passes()
        self.update()

    def passes(self) -> None:
        """Make the forward and the backward pass of a training step."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def update(self) -> None:
        """Make AdamW's part of a training step."""
        if self.optimizer:
            self.optimizer.step()

    def loss(self) -> Tensor:
        """Return a scalar that depends on all outputs."""
        loss: Tensor = self.model(self.tokens[:, :-1].contiguous(), self.tokens[:, 1:].contiguous())[0].mean()
        return loss

    @torch.no_grad()
    def prefill(self) -> None:
        """Read the whole input, up to the logits of its last token."""
        _, self.state = self.model.prefill(self.tokens[:, :-1], self._empty_state())

    def _empty_state(self) -> Any:
        """Return the state before the first token, with memory for the prompt."""
        batch, length = self.tokens[:, :-1].shape
        return [reserve(layer.mixer.initial_state(batch), length) for layer in self.layers]

    def make_room(self) -> None:
        """Give the state's caches memory for ROOM tokens more than the prompt; count the state's bytes before that."""
        tensors = [leaf for leaf in tree_leaves(self.state) if isinstance(leaf, Tensor)]
        self.state_bytes = sum(t.numel() * t.element_size() for t in tensors) // len(self.tokens)
        self.state = [reserve(state, self.tokens.shape[1] - 1 + ROOM) for state in self.state]
        self.plan_steps()

    @torch.no_grad()
    def plan_steps(self) -> None:
        """Prepare the steps from the state, as generation does."""
        self.plan = plan_steps(self.model, self.state, len(self.tokens))

    @torch.no_grad()
    def decode(self) -> None:
        """Go on by one token, up to its logits."""
        if self.plan is not None:
            self.plan.step(self.tokens[:, -1])
        else:
            _, self.state = self.model.step(self.tokens[:, -1], self.state)

    @property
    def layers(self) -> list[Layer]:
        return [layer for layer in self.model.layers.values() if isinstance(layer, Layer)]

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


class LayerPart(Part):
    """One layer between others: its input is the residual stream."""

    def __init__(self, name: str, config: RunConfig, index: int, device: torch.device) -> None:
        super().__init__(name, config, Stage(1, 3, index, index + 1), device)
        (self.layer,) = self.layers
        self.layer_plan: PreparedStep | None = None

    def prepare(self, batch: int, length: int) -> None:
        super().prepare(batch, length)
        generator = torch.Generator().manual_seed(1)
        model, dtype = self.config.model, self.config.precision.dtype
        widths = model.residual.state_widths(model, self.model.stage.start)
        states = [torch.randn(length, batch, width, generator=generator) for width in widths]  # [s, b, width]
        self.stream = Stream(tuple(state.to(self.device, dtype) for state in states), {})

    def loss(self) -> Tensor:
        states = tuple(state.detach().requires_grad_() for state in self.stream.states)
        y: Tensor = self.layer(Stream(states, {})).states[0]
        return y.float().mean()

    @torch.no_grad()
    def prefill(self) -> None:
        _, state = self.layer.prefill(self.stream, *self._empty_state())
        self.state = [state]

    @torch.no_grad()
    def plan_steps(self) -> None:
        (state,) = self.state
        self.layer_plan = plan_layer_steps(self.layer, state, self.stream.states[0][-1].clone())

    @torch.no_grad()
    def decode(self) -> None:
        if self.layer_plan is not None:
            for call in self.layer_plan.calls:
                call()
        else:
            token = Stream(tuple(state[-1] for state in self.stream.states), {})
            _, state = self.layer.step(token, *self.state)
            self.state = [state]


def whole_model(config: RunConfig, device: torch.device) -> Part:
    """Return a model as one part."""
    return Part(config.name, config, whole(config.model), device)


def parts_of(configs: Sequence[RunConfig], device: torch.device) -> tuple[dict[str, Part], list[Counter[str]]]:
    """Return the distinct parts of several models, and how often each model has each of them."""
    parts: dict[str, Part] = {}
    counts: list[Counter[str]] = []
    for config in configs:
        model, of_model = config.model, Counter[str]()
        shared = (model.hidden_size, model.norm_eps, model.zero_centered_norms, config.precision.format)
        for index, name in enumerate(model.layer_names):
            block = model.blocks[name]
            place = (model.residual.model_dump_json(), model.residual.state_widths(model, index))
            key = f"{name} {shared} {block.model_dump_json()} {place}"
            of_model[key] += 1
            if key not in parts:
                parts[key] = LayerPart(name, config, index, device)
        key = f"{ENDS} {shared} {model.vocab_size} {model.tie_embeddings} {model.residual.model_dump_json()}"
        of_model[key] += 1
        if key not in parts:
            parts[key] = Part(ENDS, config, Stage(0, 1, 0, 0), device)
        counts.append(of_model)
    return parts, counts
