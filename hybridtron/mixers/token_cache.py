"""What mixers keep of every token, to see all of them or those of a window again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_CAPACITY = 64  # tokens; a cache doubles when it is full, unless `reserve` has made room


class TokenCache(NamedTuple):
    """Entries of the tokens of b sequences, in memory for `capacity` tokens.

    Token t has the index t, or t modulo the window. Of sequences of different lengths the shorter ones have padding in
    front, zeros that only `own_tokens` tells from tokens.
    """

    entries: tuple[Tensor, ...]  # [b, ..., capacity, c] each
    seen: int = 0  # tokens so far, with padding
    window: int | None = None
    padding: Tensor | None = None  # of each sequence [b]; None: there is none

    @property
    def capacity(self) -> int:
        return self.entries[0].shape[-2]

    @property
    def length(self) -> int:
        """Return how many tokens are held."""
        return min(self.seen, self.window or self.seen)

    def reserve(self, tokens: int) -> TokenCache:
        """Return the cache with memory for so many tokens in all."""
        more = min(tokens, self.window or tokens) - self.capacity
        if more <= 0:
            return self
        # A window that has gone round is as long as the memory, so tokens keep their indices.
        grown = (torch.cat([t, t.new_zeros(*t.shape[:-2], more, t.shape[-1])], -2) for t in self.entries)
        return self._replace(entries=tuple(grown))

    def append(self, *new: Tensor) -> TokenCache:
        """Write the entries [b, ..., s, c] of the next s tokens into the memory of this cache, or into a larger one.

        Where gradients are wanted the memory is copied, so that the backward pass finds it as it was.
        """
        tokens, seen, window = new[0].shape[-2], self.seen, self.window
        after = seen + tokens
        cache = self
        if min(after, window or after) > self.capacity:
            cache = self.reserve(max(after, 2 * self.capacity, FIRST_CAPACITY))
        if any(t.requires_grad for t in (*cache.entries, *new)):  # a backward pass reads what was held before
            cache = cache._replace(entries=tuple(t.clone() for t in cache.entries))
        kept = min(tokens, window or tokens)
        first = (after - kept) % window if window else seen
        until_end = min(kept, cache.capacity - first) if window else kept
        for memory, entry in zip(cache.entries, new, strict=True):
            memory[..., first : first + until_end, :] = entry[..., tokens - kept : tokens - kept + until_end, :]
            if until_end < kept:
                memory[..., : kept - until_end, :] = entry[..., tokens - kept + until_end :, :]
        return cache._replace(seen=after)

    def held(self) -> tuple[Tensor, ...]:
        """Return the entries of the tokens held [b, ..., length, c], by their indices."""
        length = self.length
        return tuple(t[..., :length, :] for t in self.entries)

    def in_order(self) -> tuple[Tensor, ...]:
        """Return the entries of the tokens held [b, ..., length, c], first token first."""
        oldest = self.seen % self.window if self.window and self.seen > self.window else 0
        return self.held() if not oldest else tuple(t.roll(-oldest, -2) for t in self.held())

    def own_tokens(self) -> Tensor | None:
        """Return which of `held` are tokens of the sequence and no padding [b, length], None where all are."""
        if self.padding is None:
            return None
        last, index = self.seen - 1, torch.arange(self.length, device=self.padding.device)
        times = last - (last - index) % self.window if self.window else index
        return times >= self.padding.unsqueeze(1)

    def position(self) -> int | Tensor:
        """Return how many tokens every sequence has had, or each [b] where they differ."""
        return self.seen if self.padding is None else self.seen - self.padding

    def take(self, rows: Tensor) -> TokenCache:
        """Return the cache of some sequences, in memory of its own."""
        rows = rows.to(self.entries[0].device)
        padding = None if self.padding is None else self.padding[rows]
        return self._replace(entries=tuple(t.index_select(0, rows) for t in self.entries), padding=padding)

    def without_padding(self, tokens: int) -> TokenCache:
        """Return the cache of sequences of so many tokens each, without padding in front of them."""
        if self.padding is None:
            return self
        kept = min(tokens, self.length)
        entries = tuple(t[..., self.length - kept :, :] for t in self.in_order())
        memory = tuple(t.new_empty(*t.shape[:-2], self.capacity, t.shape[-1]) for t in self.entries)
        return TokenCache(memory, tokens - kept, self.window).append(*entries)

    @classmethod
    def join(cls, caches: Sequence[TokenCache]) -> TokenCache:
        """Return the cache of the sequences of several, with padding in front of the shorter ones."""
        seen, capacity = max(cache.seen for cache in caches), max(cache.capacity for cache in caches)
        aligned, paddings = [], []
        for cache in caches:
            entries, like = cache.in_order(), cache.entries[0]
            padding = like.new_zeros(len(like), dtype=torch.long) if cache.padding is None else cache.padding
            paddings.append(padding + (seen - cache.seen))
            if cache.seen < seen:
                memory = tuple(
                    t.new_zeros(*t.shape[:-2], min(seen, cache.window or seen), t.shape[-1]) for t in entries
                )
                cache = cache._replace(entries=memory, seen=seen - cache.length).append(*entries)
            aligned.append(cache.reserve(capacity))
        joined = tuple(torch.cat(parts) for parts in zip(*(cache.entries for cache in aligned), strict=True))
        differ = any(cache.padding is not None or cache.seen < seen for cache in caches)
        return aligned[0]._replace(entries=joined, padding=torch.cat(paddings) if differ else None)
