"""Documents that are packed into sequences and kept apart, as `data.documents: isolate` asks.

What mixes tokens sees documents as sequences of their own: those of a micro-batch are copied into a few batches of
similar length, and its results back. Such an operation is causal, so the tokens that fill a batch up, after the end of
a shorter document, change nothing before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridtron.ops.opaque import opaque

GROUP_COST = 64  # what another batch costs, in tokens that fill one up


@dataclass(frozen=True)
class Group:
    """Documents that are batched together: where their tokens come from, among the rows [s b] of [s, b, c]."""

    size: tuple[int, int]  # tokens of the longest, documents
    source: Tensor  # [tokens documents] the row of each token; after a document's end that of its last token
    target: Tensor  # likewise; after a document's end the number of rows
    filled: Tensor  # the positions after a document's end, in `source`


@dataclass(frozen=True)
class Documents:
    """The documents of a micro-batch of b whole sequences of s tokens, in every process that holds a part of them."""

    lengths: tuple[np.ndarray, ...]  # of each sequence's pieces of documents, in order; they add up to s
    weights: Tensor  # of the losses at the tokens [b, s]
    pieces: np.ndarray | None = None  # lengths of all pieces of documents in the global batch, last labels included
    _groups: dict[torch.device, list[Group]] = field(default_factory=dict, repr=False, compare=False)

    @opaque
    def apart(self, core: Callable[[Tensor], Tensor], packed: Tensor) -> Tensor:
        """Apply a causal function of whole sequences, [s, b, c] -> [s, b, c'], to each document by itself."""
        if all(len(lengths) == 1 for lengths in self.lengths):
            return core(packed)
        groups = self._grouped(packed.device)
        batches = _Split.apply(packed, groups)
        return _Join.apply(packed.shape[:2], groups, *(core(batch) for batch in batches))

    @opaque
    def starts(self, device: torch.device) -> Tensor:
        """Return whether each token is the first of a document, [s, b]."""
        starts = torch.zeros(int(self.lengths[0].sum()), len(self.lengths), dtype=torch.bool)
        for sequence, lengths in enumerate(self.lengths):
            starts[np.cumsum(lengths) - lengths, sequence] = True
        return starts.to(device)

    def weights_ahead(self, depth: int) -> Tensor:
        """Return the weights [b, s] of losses of the tokens that come `depth` positions after the labels.

        Those count that belong to the document of their position. Weights make the mean over all positions of the
        global batch the mean over those that count.
        """
        assert self.pieces is not None
        follows = self.weights > 0
        counted = follows.clone()
        for step in range(1, depth + 1):
            counted[:, :-step] &= follows[:, step:]
            counted[:, -step:] = False
        seq_len = self.weights.size(1)
        positions = int(self.pieces.sum()) // (seq_len + 1) * seq_len
        number = int((self.pieces - 1 - depth).clip(min=0).sum())
        return counted * (positions / max(1, number))

    def _grouped(self, device: torch.device) -> list[Group]:
        """Return the batches, made at the first call for a device."""
        if device not in self._groups:
            self._groups[device] = _groups(self.lengths, device)
        return self._groups[device]


def weights_ahead(seq_len: int, depth: int, documents: Documents | None = None) -> Tensor:
    """Return the weights [b or 1, s] of losses of the tokens that come `depth` positions after the labels.

    The last positions of a sequence have no such token; the mean over all positions is the mean over the others.
    """
    if documents is not None:
        return documents.weights_ahead(depth)
    weights = torch.full((1, seq_len), seq_len / (seq_len - depth))
    weights[:, -depth:] = 0
    return weights


def isolated(core: Callable[[Tensor], Tensor], documents: Documents | None) -> Callable[[Tensor], Tensor]:
    """Return the function of whole sequences that applies `core` to each document, or `core` where there are none."""
    return core if documents is None else partial(documents.apart, core)


def group_sizes(lengths: np.ndarray, cost: int = GROUP_COST) -> list[int]:
    """Return how many documents each batch takes of those of `lengths`, ascending.

    The cuts make the fewest tokens, those that fill batches up included, with `cost` more for every batch.
    """
    longest, last = np.unique(lengths, return_counts=True)
    last = np.concatenate([[0], np.cumsum(last)])  # documents up to each length
    best, cut = np.zeros(len(longest) + 1), np.zeros(len(longest) + 1, np.int64)
    for end in range(1, len(longest) + 1):
        costs = best[:end] + (last[end] - last[:end]) * longest[end - 1] + cost
        cut[end] = costs.argmin()
        best[end] = costs[cut[end]]
    sizes, end = [], len(longest)
    while end:
        sizes.append(int(last[end] - last[cut[end]]))
        end = cut[end]
    return sizes[::-1]


def _groups(documents: Sequence[np.ndarray], device: torch.device) -> list[Group]:
    batch, seq_len = len(documents), int(documents[0].sum())
    lengths = np.concatenate(documents)
    first = np.concatenate([(np.cumsum(each) - each) * batch + i for i, each in enumerate(documents)])  # rows
    order = np.argsort(lengths, kind="stable")
    groups, start = [], 0
    for count in group_sizes(lengths[order]):
        own = order[start : start + count]
        start += count
        longest = int(lengths[own[-1]])
        position = np.arange(longest)[:, None]
        source = first[own] + np.minimum(position, lengths[own] - 1) * batch
        inside = position < lengths[own]
        target = np.where(inside, source, batch * seq_len)
        indices = (source.ravel(), target.ravel(), np.flatnonzero(~inside))
        groups.append(Group((longest, count), *(torch.from_numpy(each).to(device) for each in indices)))
    return groups


def _split(x: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
    """Copy the rows of x [s, b, c] into the batches [tokens, documents, c]."""
    rows = x.reshape(-1, x.shape[-1])
    return tuple(rows.index_select(0, group.source).view(*group.size, -1) for group in groups)


def _join(size: Sequence[int], batches: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """Copy the tokens of documents from the batches to [s, b, c]; what fills batches up lands in a row beyond."""
    channels, count = batches[0].shape[-1], size[0] * size[1]
    rows = batches[0].new_empty(count + 1, channels)
    for batch, group in zip(batches, groups, strict=True):
        rows.index_copy_(0, group.target, batch.reshape(-1, channels))
    return rows[:count].view(*size, channels)


class _Split(torch.autograd.Function):
    """Its gradients at tokens that fill a batch up are 0, as nothing before them depends on them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
        ctx.size, ctx.groups = x.shape[:2], groups
        return _split(x, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _join(ctx.size, grads, ctx.groups), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, size: Sequence[int], groups: Sequence[Group], *batches: Tensor) -> Tensor:
        ctx.groups = groups
        return _join(size, batches, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        split = _split(grads[0], ctx.groups)
        for grad, group in zip(split, ctx.groups, strict=True):
            grad.view(-1, grad.shape[-1]).index_fill_(0, group.filled, 0.0)
        return None, None, *split
