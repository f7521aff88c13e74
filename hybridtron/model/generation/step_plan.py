"""Steps of a model as a list of prepared calls on fixed memory.

A step is short: for a small model on a CPU, calling modules and operations takes longer than the arithmetic. A plan
does that work once. Weights are used where they lie, so that they may change in place between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.norm import RMSNorm
from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.layer import Layer
from hybridtron.model.residual import plain
from hybridtron.model.residual.stream import Stream
from hybridtron.ops.elementwise.precision import under_transforms
from hybridtron.ops.native.declarations import PreparedCall, is_plain
from hybridtron.ops.native.library import Kernels, load

MOST_ROWS = 16  # sequences whose linears take our kernel; of more, MKL's products are faster


class StepPlan:
    """Steps of a model that lies in one process; see `plan_steps`."""

    def __init__(self, model: LanguageModel, kernels: Kernels, state: Sequence[State], batch: int) -> None:
        embedding = model.get_parameter("embedding.weight").detach()
        prepare = _Preparation(kernels, batch, embedding.shape[1])
        x = prepare.x
        head = model.get_parameter("embedding.weight") if model.tied else model.head.weight
        assert isinstance(head, Tensor)
        self.tokens = torch.zeros(batch, dtype=torch.long)
        self.logits = torch.empty(batch, len(head))
        self.layers = [prepare.layer(layer, own) for layer, own in zip(model.layer_list, state, strict=True)]
        self.calls: list[PreparedCall] = [partial(torch.index_select, embedding, 0, self.tokens, out=x)]
        if model.embedding_multiplier != 1:
            self.calls.append(partial(x.mul_, model.embedding_multiplier))
        if any(layer.carries for layer in model.layer_list):
            self.calls.append(prepare.begin)
        self.calls += [call for layer in self.layers for call in layer.calls]
        self.calls += prepare.norm(x, model.final_norm, prepare.normed, scale=1 / model.logits_scaling)
        self.calls += prepare.linear(prepare.normed, head, None, self.logits)
        self.left = min((layer.limit for layer in self.layers), default=1 << 60)
        self.threads = torch.get_num_threads()
        # By owner and name, as another parameter may take the place of one.
        self.parameters: list[tuple[Mapping[str, Any], str]] = [
            (m._parameters, name) for m in model.modules() for name, p in m._parameters.items() if p is not None
        ]
        self.addresses = self._addresses()

    @property
    def usable(self) -> bool:
        """Return whether a step can be taken: caches have room, and parameters lie where they did."""
        if not self.left or torch.get_num_threads() != self.threads:
            return False
        return self._addresses() == self.addresses

    def _addresses(self) -> list[int]:
        """Return where each parameter lies now."""
        return [owner[name].data_ptr() for owner, name in self.parameters]

    def step(self, tokens: Tensor) -> Tensor:
        """Map the next token of every sequence, ids [b], to the logits [b, vocabulary] after it.

        The next step writes into their memory.
        """
        self.tokens.copy_(tokens)
        for call in self.calls:
            call()
        self.left -= 1
        return self.logits

    def state(self) -> list[State]:
        """Return the state after the steps that were taken, for use without this plan."""
        return [layer.state() for layer in self.layers]


def plan_steps(model: Any, state: Sequence[State], batch: int) -> StepPlan | None:
    """Prepare steps of `batch` sequences that go on from `state`, which is used up.

    Returns None where the model is not one of plain float32 on a CPU in one process, where a module has forward hooks,
    and where there are no compiled kernels.
    Layers without kernels, or parts of them, take their plain steps.
    """
    if not isinstance(model, LanguageModel) or not (model.stage.is_first and model.stage.is_last):
        return None
    kernels = _kernels_for(model)
    if kernels is None or type(model.final_norm) is not RMSNorm or not _is_plain_linear(model.head):
        return None
    if not all(map(_adds_alone, model.layer_list)):
        return None
    return StepPlan(model, kernels, state, batch)


def plan_layer_steps(layer: Layer, state: State, x: Tensor) -> PreparedStep | None:
    """Prepare steps of one layer on the residual stream x [b, h], which they change in place; see `plan_steps`."""
    kernels = _kernels_for(layer)
    if kernels is None or layer.carries or not _adds_alone(layer):
        return None
    prepare = _Preparation(kernels, *x.shape)
    prepare.x = x
    return prepare.layer(layer, state)


def _kernels_for(module: nn.Module) -> Kernels | None:
    """Return the compiled kernels where they can take all parameters, and nobody hooked a call that they replace."""
    if under_transforms() or not all(map(is_plain, module.parameters())):
        return None
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    return None if hooked else load()[0]


def _adds_alone(layer: Layer) -> bool:
    """Return whether a layer adds to a single residual stream, and has all its heads in this process."""
    return type(layer.residual) is plain.Layer and layer.mixer.backend.shards.tensor.size == 1


def _is_plain_linear(module: Any) -> bool:
    """Return whether it multiplies by a weight of its own or a tied one; not where FP8 is emulated, nor for None."""
    return module is not None and getattr(module, "fp8", module) is None


class _Preparation:
    """Memory of one step that layers share, and calls on it."""

    def __init__(self, kernels: Kernels, batch: int, width: int) -> None:
        self.kernels, self.batch = kernels, batch
        self.x, self.normed = torch.empty(batch, width), torch.empty(batch, width)
        self.buffers: dict[tuple[str, int], Tensor] = {}
        self.carried: Mapping[str, Tensor] = {}  # values of earlier layers

    def buffer(self, use: str, width: int) -> Tensor:
        return self.buffers.setdefault((use, width), torch.empty(self.batch, width))

    def layer(self, layer: Layer, state: State) -> PreparedStep:
        """Prepare a layer's steps on the residual stream."""
        mixer, x = layer.mixer, self.x
        before: Any = getattr(mixer, mixer.in_name, None)
        after: Any = getattr(mixer, mixer.out_name, None)
        if (
            layer.carries
            or type(layer.norm) is not RMSNorm
            or not (_is_plain_linear(before) and _is_plain_linear(after))
        ):
            return self.plain(partial(self.step, layer), x, x, state)
        packed, y = self.buffer("packed", len(before.weight)), self.buffer("y", after.weight.shape[1])
        core = mixer.prepare_step_core(self.kernels, packed, y, state)
        if core is None and _has_plain_step(mixer):
            core = self.plain(mixer.step_core, packed, y, state)
        if core is None:
            return self.plain(partial(self.step, layer), x, x, state)
        calls = [] if layer.post_norm else self.norm(x, layer.norm, self.normed)
        calls += self.linear(x if layer.post_norm else self.normed, before.weight, before.bias, packed)
        calls += core.calls
        if layer.post_norm:
            calls += self.linear(y, after.weight, after.bias, self.normed)
            calls += self.norm(self.normed, layer.norm, x, scale=layer.residual.multiplier, add=True)
        else:
            calls += self.linear(y, after.weight, after.bias, x, scale=layer.residual.multiplier, add=True)
        return core._replace(calls=calls)

    def begin(self) -> None:
        """Forget the values of the last step's layers."""
        self.carried = {}

    def step(self, layer: Layer, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Take a step of a whole layer from the residual stream x [b, h]."""
        stream, state = layer.step(Stream((x,), self.carried), state)
        self.carried = stream.carried
        return stream.states[0], state

    def plain(
        self, step: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, y: Tensor, state: State
    ) -> PreparedStep:
        """Prepare a step in PyTorch from the memory of x into that of y."""

        def call() -> None:
            nonlocal state
            # A state may hold its input, whose memory the next step writes.
            out, state = step(x.clone(), state)
            y.copy_(out)

        return PreparedStep([call], lambda: state)

    def norm(self, x: Tensor, norm: Any, y: Tensor, *, scale: float = 1.0, add: bool = False) -> list[PreparedCall]:
        offset = 1.0 if norm.zero_centered else 0.0
        return [self.kernels.norm_step.prepare(*x.shape, x, norm.weight, offset, norm.eps, scale, int(add), y)]

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *, scale: float = 1.0, add: bool = False
    ) -> list[PreparedCall]:
        """Prepare y = scale * (x weight^T + bias), or the sum of y and that."""
        if self.batch <= MOST_ROWS:
            return [self.kernels.linear_step.prepare(*x.shape, len(weight), x, weight, bias, scale, int(add), y)]

        def call() -> None:
            out = F.linear(x, weight, bias)
            y.add_(out, alpha=scale) if add else torch.mul(out, scale, out=y)

        return [call]


def _has_plain_step(mixer: Mixer) -> bool:
    """Return whether a step is the core's between the two linears."""
    own = type(mixer)
    return mixer.config.kind == "sequence" and all(
        getattr(own, name) is getattr(Mixer, name) for name in ("step", "project_in", "project_out")
    )
