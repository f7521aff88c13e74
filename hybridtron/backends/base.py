"""The interface between mixers and backends, and what of it is the same in any single process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind
from hybridtron.backends.norm import RMSNorm
from hybridtron.ops.elementwise.cross_entropy import cross_entropy, linear_cross_entropy
from hybridtron.tensors import WHOLE, PackedPart, Shard, Shards, TensorSpec


class Backend:
    """Builds the parts of a layer that depend on how the model is laid out over devices.

    Parameters come uninitialised, with the local shape of their spec, named `weight` and `bias` in the modules that
    own them; `hybridtron.model.initialize` fills them. What is not overridden here holds for a process alone.
    """

    name: str
    sequence = Shard()  # which run of every sequence is this process's, between mixers
    context_parallel_size = 1
    sequence_parallel = False  # whether tensor-parallel processes share the tokens out between mixers

    def __init__(self, dtype: torch.dtype, device: torch.device | str, norm_eps: float, shards: Shards = WHOLE) -> None:
        self.dtype = dtype
        self.device = device
        self.norm_eps = norm_eps
        self.shards = shards  # of the parameters, which this process holds

    def parameter(self, spec: TensorSpec) -> nn.Parameter:
        """Allocate an uninitialised parameter of this rank's shape, in float32 where its spec says so."""
        dtype = torch.promote_types(self.dtype, torch.float32) if spec.keeps_float32 else self.dtype
        values = torch.empty(spec.local_shape(self.shards), dtype=dtype, device=self.device)
        return nn.Parameter(values, requires_grad=spec.trained)

    def column_linear(self, weight: TensorSpec, bias: TensorSpec | None = None, *, shared: bool = False) -> nn.Module:
        """Build a linear [s, b, in] -> [s, b, local out]: each rank computes its shards of the output parts.

        With `shared` the module owns no weight and takes it as a second argument (tied embeddings).
        """
        raise NotImplementedError

    def row_linear(self, weight: TensorSpec, bias: TensorSpec | None = None) -> nn.Module:
        """Build a linear [s, b, local in] -> [s, b, out]: the sum over the ranks' partial products."""
        raise NotImplementedError

    def norm(self, weight: TensorSpec, *, zero_centered: bool = False) -> nn.Module:
        """Build an RMS norm over the last axis; with `zero_centered` it multiplies by 1 + weight."""
        return RMSNorm(self.parameter(weight), self.norm_eps, zero_centered)

    def embedding(self, weight: TensorSpec) -> nn.Module:
        """Build an embedding: token ids [b, s] -> [s, b, h]."""
        raise NotImplementedError

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        """Build the dispatcher of a layer with so many experts.

        With a capacity factor a token may have fewer than `top_k` of them.
        """
        raise NotImplementedError

    def with_full_sequence(
        self, core: Callable[[Tensor], Tensor], packed: Tensor, parts: Sequence[PackedPart]
    ) -> Tensor:
        """Apply `core` to whole sequences: [s, b, c] -> [s, b, c'].

        Under context parallelism a process has a run of every sequence, [s / cp, b, c]: it trades that for the whole
        sequence of its share of the heads, [s, b, c / cp], and back after `core`. Each of the `parts` that `packed`
        consists of is shared out by itself.
        """
        return core(packed)

    def core_sizes(self, parts: Sequence[PackedPart]) -> list[int]:
        """Return the length of each part inside `with_full_sequence`."""
        return [part.size // self.shards.tensor.size // self.context_parallel_size for part in parts]

    def local_heads(self, parameter: Tensor, spec: TensorSpec) -> Tensor:
        """Return the share of a parameter over heads or channels that belongs to this process's heads in
        `with_full_sequence`."""
        return parameter

    def gather_runs(self, value: Tensor) -> Tensor:
        """Gather the values [...] of the processes that share sequences, in the order of their runs: [runs, ...].
        Without gradient."""
        return value.unsqueeze(0)

    def to_local_heads(self, x: Tensor) -> Tensor:
        """Return the output of a `row_linear`, or under sequence parallelism a run of its tokens, as [s, b, c], for use
        in the heads of each tensor-parallel rank: their gradients are summed.
        """
        return x

    def of_all_heads(self, parameter: Tensor) -> Tensor:
        """Return a parameter without parts for use in the heads of each tensor-parallel rank: their gradients are
        summed."""
        return parameter

    def sum_over_heads(self, x: Tensor) -> Tensor:
        """Add up x over the processes that hold other heads of the same tokens in `with_full_sequence`."""
        return x

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loss and log partition function, each [...], of local logits [..., local vocabulary] and targets."""
        return cross_entropy(logits, targets)

    def projected_cross_entropy(
        self, head: nn.Module, x: Tensor, shared_weight: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute `cross_entropy` of the logits head(x), x [..., h]; `shared_weight` is that of a tied embedding.

        Where one process has the whole vocabulary, kernels need not store the logits whole.
        """
        if self.shards.tensor.size > 1:
            return self.cross_entropy(head(x, shared_weight), targets)
        weight: Any = head.weight if shared_weight is None else shared_weight
        return linear_cross_entropy(x, weight, targets, lambda: head(x, shared_weight))

    def whole_sequences(self, model: nn.Module) -> AbstractContextManager[None]:
        """Leave all tokens to every tensor-parallel rank meanwhile, in the modules of `model`: sequence parallelism,
        which shares tokens out between mixers, is off. Without gradient."""
        return nullcontext()

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Gather local logits to logits over the whole vocabulary, on every rank."""
        return logits
