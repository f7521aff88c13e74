"""Base class of every primitive's module.

Most primitives are a projection, a core operation on whole sequences and a projection back:

    y = out_proj(core(in_proj(x)))           # x and y [s, b, h]

They define `core` and, to generate, `initial_state`, `prefill_core` and `step_core`; a channel mixer, which looks at
each token by itself, needs none of these three:

    state = mixer.initial_state(batch)
    y, state = mixer.prefill(x, state)       # x and y [s, b, h]: the next tokens of every sequence, in parallel
    y, state = mixer.step(x, state)          # x and y [b, h]: the next token of every sequence

A mixer whose config `carries` values reads and returns those of the earlier layers too, [s, b, channels] or, in a step,
[b, channels] by name, as the last argument and the last result of all three:

    y, carried = mixer(x, documents, carried)
    y, state, carried = mixer.prefill(x, state, carried)
    y, state, carried = mixer.step(x, state, carried)

Both give what `forward` gives for the whole sequence, except that no capacity of experts, which is a share of a whole
sequence, limits them. A tensor-parallel rank keeps the state of its own heads; every rank has all tokens
(`Backend.whole_sequences`). Context parallelism, which cuts sequences, has no steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.ops.elementwise.norm import norm_and_gate, rms_norm, sharded_rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.native.library import Kernels
from hybridtron.ops.opaque import opaque
from hybridtron.tensors import PackedPart

X = TypeVar("X")  # a tensor, or several in tuples and mappings
Y = TypeVar("Y")
State = Any  # tensors whose first axis is the sequences, and caches of tokens (`token_cache`), in tuples


def recompute(function: Callable[[X], Y], x: X) -> Y:
    """Return function(x), keeping x alone for the backward pass, which recomputes the rest (Chen et al. 2016)."""
    # By themselves, the tensors are among what autograd saves, which memory is counted by.
    leaves, structure = tree_flatten(x)

    def of_leaves(*leaves: Any) -> Y:
        return function(tree_unflatten(leaves, structure))

    return checkpoint(of_leaves, *leaves, use_reentrant=False, preserve_rng_state=False)


class ConvState(NamedTuple):
    """State of a mixer that remembers tokens by a short convolution, and by what comes after it."""

    conv: Tensor  # inputs of the convolution before the next token [b, k - 1, channels]
    memory: State


class Mixer(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own heads or channels.

    Builds what `config.tensors()` declares: of `NAME.weight` (with `NAME.bias`) a linear, row-parallel where the weight
    is cut along axis 1 and column-parallel otherwise; of a name without a dot a parameter. Other names belong to
    submodules, which subclasses build.
    """

    in_name: ClassVar[str] = "in_proj"  # the linears before and after the core
    out_name: ClassVar[str] = "out_proj"

    def __init__(self, config: MixerConfig, backend: Backend) -> None:
        super().__init__()
        self.config: Any = config
        self.backend = backend
        self.specs = config.tensors()
        self.recompute_core = False  # whether the backward pass recomputes what is inside `core`
        for name, spec in self.specs.items():
            owner, _, kind = name.rpartition(".")
            if not owner:
                self.register_parameter(name, backend.parameter(spec))
            elif kind == "weight" and "." not in owner:
                build = backend.row_linear if spec.axis == 1 else backend.column_linear
                self.add_module(owner, build(spec, self.specs.get(f"{owner}.bias")))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # parameters and submodules are declared by `config.tensors()`

    @cached_property
    def packing(self) -> tuple[PackedPart, ...]:
        """Return the parts of the input of `core`: those of the projection that makes it, unless the config states
        others."""
        parts: tuple[PackedPart, ...] | None = self.config.core_parts
        return self.specs[f"{self.in_name}.weight"].parts if parts is None else parts

    @cached_property
    def core_sizes(self) -> list[int]:
        """Return the length of each part of the input of `core`."""
        return self.backend.core_sizes(self.packing)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """Map [s, b, h] to [s, b, h]; with documents, each of them as if it were a sequence by itself."""
        return self.project_out(self.over_sequence(self.project_in(x, documents), documents))

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """Map [s, b, h] to the input of `core` [s, b, c]."""
        return getattr(self, self.in_name)(x)

    def project_out(self, y: Tensor) -> Tensor:
        """Map the output of `core` [s, b, c'] to [s, b, h]."""
        return getattr(self, self.out_name)(y)

    def core(self, packed: Tensor) -> Tensor:
        """Map [s, b, c] to [s, b, c'], for whole sequences of this process's heads. Holds the activations that
        selective recomputation does not keep."""
        raise NotImplementedError

    def run_core(self, packed: Tensor) -> Tensor:
        """Return core(packed), recomputed by the backward pass where `recompute_core` is set."""
        return recompute(self.core, packed) if self.recompute_core else self.core(packed)

    def over_sequence(self, packed: Tensor, documents: Documents | None = None) -> Tensor:
        """Apply `core` to whole sequences, or to each document; a channel mixer needs only its own tokens."""
        if self.config.kind == "channel":
            return self.run_core(packed)
        core = self.run_core if documents is None else partial(self.isolated_core, documents=documents)
        return self.backend.with_full_sequence(core, packed, self.packing)

    @opaque  # lengths of documents differ from step to step
    def isolated_core(self, packed: Tensor, documents: Documents) -> Tensor:
        """Return the core of each document by itself, [s, b, c] -> [s, b, c']."""
        return documents.apart(self.run_core, packed)

    def initial_state(self, batch: int) -> State:
        """Return the state before the first token. A recurrent state is float32 where parameters are narrower."""
        if self.config.kind == "channel":
            return ()
        raise NotImplementedError

    def local_count(self, count: int) -> int:
        """Return how many of so many heads, groups or channels are this tensor-parallel rank's."""
        return count // self.backend.shards.tensor.size

    def zero_state(self, *size: int) -> Tensor:
        """Return zeros in the dtype of states."""
        like = next(self.parameters())
        return like.new_zeros(size, dtype=accumulation_dtype(like))

    def zero_conv_inputs(self, batch: int) -> Tensor:
        """Return the inputs of the short convolution `conv_weight` before the first token, zeros [b, k - 1, c]."""
        channels, taps = self.conv_weight.shape
        return self.conv_weight.new_zeros(batch, taps - 1, channels)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next tokens of every sequence, [s, b, h] -> [s, b, h], and return the state after the last one.

        The state handed in is used up: its memory may hold the new one.
        """
        if self.config.kind == "channel":  # every token as a sequence of its own
            return self(x.flatten(0, 1).unsqueeze(0)).view_as(x), state
        if type(self).prefill_core is Mixer.prefill_core:  # of a primitive that has only steps
            outputs = []
            for token in x:
                y, state = self.step(token, state)
                outputs.append(y)
            return torch.stack(outputs), state
        y, state = self.prefill_core(self.project_in(x), state)
        return self.project_out(y), state

    def prefill_core(self, packed: Tensor, state: State) -> tuple[Tensor, State]:
        """Apply `core` to the next tokens of every sequence, [s, b, c] -> [s, b, c'], and return their state."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next token of every sequence, [b, h] -> [b, h], and return the state after it.

        The state handed in is used up: its memory may hold the new one.
        """
        if self.config.kind == "channel":
            return self(x.unsqueeze(0)).squeeze(0), state
        y, state = self.step_core(self.project_in(x.unsqueeze(0)).squeeze(0), state)
        return self.project_out(y.unsqueeze(0)).squeeze(0), state

    def step_core(self, packed: Tensor, state: State) -> tuple[Tensor, State]:
        """Apply `core` to the next token of every sequence: [b, c] -> [b, c'], and return the state after it."""
        raise NotImplementedError

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: State) -> PreparedStep | None:
        """Prepare `step_core` from the memory of packed [b, c] into that of y [b, c'], going on from `state`.

        For plain float32 on a CPU. Parameters are read at each step, so that they may change in place. Returns None
        where there are no kernels for this primitive or its options; otherwise the state handed in is used up.
        """
        return None

    def norm_and_gate(self, y: Tensor, z: Tensor, eps: float | None = None) -> Tensor:
        """Norm each head's outputs y [..., heads, d] by `norm_weight` [d], and gate: -> [..., heads * d].

        `eps` is the model's by default.
        """
        return norm_and_gate(y, z, self.of_all_heads("norm_weight"), eps or self.backend.norm_eps).flatten(-2)

    def norm_all_heads(self, x: Tensor, weight: Tensor, channels: int, eps: float) -> Tensor:
        """Norm x over its last axis, of whose `channels` this process may hold those of some heads, as of `weight`."""
        if x.shape[-1] == channels:
            return rms_norm(x, weight, eps)
        return sharded_rms_norm(x, weight, eps, channels, self.backend.sum_over_heads)

    def local_heads(self, name: str) -> Tensor:
        """Return this process's share of a parameter over heads or channels, as `core` needs it."""
        return self.backend.local_heads(getattr(self, name), self.specs[name])

    def of_all_heads(self, name: str) -> Tensor:
        """Return a parameter without parts for use in this process's heads, its gradient summed over processes."""
        return self.backend.of_all_heads(getattr(self, name))
