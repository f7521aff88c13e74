"""Multi-head latent attention on a backend."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.token_cache import TokenCache
from hybridtron.ops.attention.rotary import apply_rotary, rotary_tables
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.attention.step import attention_step, rotate_step
from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.linear import linear
from hybridtron.tensors import PackedPart


class MLA(Mixer):
    """Latent attention; parts of the core's input are queries, keys, values and the key that heads share.

    The channels that meet the shared key come first in each head.
    """

    @cached_property
    def packing(self) -> tuple[PackedPart, ...]:
        """Declare the core's input: a process has its share of the heads, and a copy of the shared key."""
        parts = (*self.specs["q.weight"].parts, *self.specs["kv_up.weight"].parts)
        copies = self.backend.shards.tensor.size * self.backend.context_parallel_size
        shared = PackedPart("shared", copies, self.config.rotary_dim)
        return (*parts, shared) if self.config.rotary_dim else parts

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        shared, latent = self._latent(x)
        copies = [self.backend.to_local_heads(shared)] * self.backend.context_parallel_size
        return torch.cat([self._queries(x), self.kv_up(latent)] + (copies if self.config.rotary_dim else []), -1)

    def core(self, packed: Tensor) -> Tensor:
        config = self.config
        q, k, v, *shared = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        sizes = (config.query_size, config.key_size, config.value_size)
        q, k, v = (part.unflatten(-1, (-1, size)) for part, size in zip((q, k, v), sizes, strict=True))
        if shared:
            key = self._rotate(0, shared[0].unsqueeze(2)).expand(-1, -1, k.shape[2], -1)
            q, k = self._rotate(0, q), torch.cat([key, k], -1)
        return attention(q, k, v, scale=config.softmax_scale).flatten(2).transpose(0, 1)

    def initial_state(self, batch: int) -> TokenCache:
        """Return an empty cache of the shared key, rotated, and the normed latent [b, tokens, rotary_dim + kv_rank]."""
        return TokenCache((self.kv_down.new_empty(batch, 0, len(self.kv_down)),))

    def prefill(self, x: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        """Make keys and values of all latents, those in the cache too."""
        config = self.config
        shared, latent = (part.transpose(0, 1) for part in self._latent(x))  # [b, s, .]
        q = self._rotate(state.seen, self._queries(x).transpose(0, 1).unflatten(-1, (-1, config.query_size)))
        shared = self._rotate(state.seen, shared.unsqueeze(2)).squeeze(2)
        state = state.append(torch.cat([shared, latent], -1))
        shared, latent = state.held()[0].split([config.rotary_dim, config.kv_rank], -1)
        k, v = self.kv_up(latent).split(self.backend.core_sizes(self.specs["kv_up.weight"].parts), -1)
        k, v = k.unflatten(-1, (-1, config.key_size)), v.unflatten(-1, (-1, config.value_size))
        if config.rotary_dim:
            k = torch.cat([shared.unsqueeze(2).expand(-1, -1, k.shape[2], -1), k], -1)
        y = attention(q, k, v, scale=config.softmax_scale)
        return self.project_out(y.flatten(2).transpose(0, 1)), state

    def step(self, x: Tensor, state: TokenCache) -> tuple[Tensor, TokenCache]:
        """Attend to the latents as keys and values of one head, each head's key projection moved into its query."""
        config, (position, seen) = self.config, (state.position(), state.seen)
        shared, latent = self._latent(x)
        q = self._queries(x.unsqueeze(0)).squeeze(0).unflatten(-1, (-1, config.query_size))
        if config.rotary and config.rotary_dim:
            rotation = (position, seen, config.rotary_dim, config.rotary_base, config.rotary_scaling)
            q, shared = rotate_step(q, *rotation), rotate_step(shared.unsqueeze(1), *rotation).squeeze(1)
        state = state.append(torch.cat([shared, latent], -1).unsqueeze(1))
        sizes = self.backend.core_sizes(self.specs["kv_up.weight"].parts)
        keys, values = (
            w.unflatten(0, (self.local_count(config.num_heads), -1)) for w in self.kv_up.weight.split(sizes)
        )
        meeting, own = q.split([config.rotary_dim, config.key_size], -1)  # [b, heads, .]
        q = torch.cat([meeting, torch.einsum("bhn,hnr->bhr", own, keys)], -1)
        held = state.held()[0].unsqueeze(1)  # [b, 1, tokens, .]
        scale = config.softmax_scale or config.query_size**-0.5
        y = attention_step(
            q, held, held[..., config.rotary_dim :], scale, visible=state.own_tokens()
        )  # [b, heads, rank]
        y = torch.einsum("bhr,hvr->bhv", y, values).flatten(1)
        return self.project_out(y.unsqueeze(0)).squeeze(0), state

    def _latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [..., h] to the shared key [..., rotary_dim] and the normed latent [..., kv_rank]."""
        shared, latent = linear(x, self.kv_down).split([self.config.rotary_dim, self.config.kv_rank], -1)
        return shared, rms_norm(latent, self.kv_norm, self.backend.norm_eps)

    def _queries(self, x: Tensor) -> Tensor:
        if self.config.q_rank:
            x = rms_norm(linear(x, self.q_down), self.q_norm, self.backend.norm_eps)
        return self.q(x)

    def _rotate(self, position: int, x: Tensor) -> Tensor:
        """Rotate the first channels of x [b, s, heads, .], tokens from `position` on."""
        config = self.config
        if not config.rotary or not config.rotary_dim:
            return x
        cos, sin = rotary_tables(
            x.shape[1],
            config.rotary_dim,
            config.rotary_base,
            device=x.device,
            offset=position,
            scaling=config.rotary_scaling,
        )
        return apply_rotary(x, cos, sin)
