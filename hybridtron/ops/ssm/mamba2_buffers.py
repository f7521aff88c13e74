"""Sizes and memory of the fused Mamba-2 (`mamba2_fused`)."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from hybridtron.ops.cuts import chunks_of
from hybridtron.ops.elementwise.row_blocks import CPU_BLOCK_ELEMENTS
from hybridtron.ops.native.library import pieces

PerSequence = TypeVar("PerSequence", "Kept", "Sums")


class Sizes(NamedTuple):
    """The extents of one call, in the names of `ssd`."""

    seq_len: int
    batch: int
    heads: int
    head_dim: int
    groups: int
    state_dim: int
    chunk_size: int
    chunks: int
    length: int  # of a chunk
    taps: int

    @classmethod
    def of(
        cls, packed: Tensor, conv_weight: Tensor, D: Tensor, head_dim: int, state_dim: int, chunk_size: int
    ) -> Sizes:
        """Return the sizes of the arguments of `mamba2_core`."""
        (seq_len, batch, _), heads, (channels, taps) = packed.shape, len(D), conv_weight.shape
        groups = (channels - heads * head_dim) // (2 * state_dim)
        chunks, length = chunks_of(seq_len, chunk_size)
        return cls(seq_len, batch, heads, head_dim, groups, state_dim, chunk_size, chunks, length, taps)

    @property
    def inner(self) -> int:
        """Return the channels of x."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> list[tuple[int, int]]:
        """Return the heads or groups of x, B and C, and their widths."""
        shared = (self.groups, self.state_dim)
        return [(self.heads, self.head_dim), shared, shared]

    @property
    def channels(self) -> int:
        """Return the channels of x, B and C together."""
        return sum(count * width for count, width in self.convolved)


class Weights(NamedTuple):
    """The parameters, contiguous and with the taps of the convolution first."""

    taps: Tensor  # [k, channels]
    conv_bias: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    norm: Tensor


class Kept(NamedTuple):
    """Results of the forward pass that the backward pass reads; the first axis is that of the sequences."""

    y: Tensor  # before the norm [b, chunks, h, l, p]
    inverse: Tensor  # of the root mean squares [b, s, g]
    scores: Tensor  # C B^T [b, chunks, g, l, l]
    states: Tensor  # after every chunk but the last [b, chunks - 1, h, n, p]
    decays: Tensor  # dt, total, inject and carry of `ssd_tiles` [b, 4, chunks, h, l]

    @classmethod
    def empty(cls, like: Tensor, sizes: Sizes) -> Kept:
        """Return uninitialized memory for all sequences, of the dtype and on the device of `like`."""
        s, b, h, p, g, n, _, chunks, length, _ = sizes
        return cls(
            like.new_empty(b, chunks, h, length, p),
            like.new_empty(b, s, g),
            like.new_empty(b, chunks, g, length, length),
            like.new_empty(b, chunks - 1, h, n, p),
            like.new_empty(b, 4, chunks, h, length),
        )


class Buffers(NamedTuple):
    """Memory to work in, written again for each sequence."""

    convolved: list[Tensor]  # x, B, C [chunks, h or g, l, .]
    matrices: Tensor  # as many chunks of [h, l, l] as stay in cache
    scaled: Tensor  # B or C by the factor of each head [chunks - 1, h, l, n]
    zeros: Tensor  # the tokens before the sequence

    @classmethod
    def empty(cls, like: Tensor, sizes: Sizes) -> Buffers:
        """Return memory for one sequence, of the dtype and on the device of `like`."""
        square = sizes.heads * sizes.length**2
        at_a_time = min(sizes.chunks, max(1, CPU_BLOCK_ELEMENTS // square))
        return cls(
            [like.new_empty(sizes.chunks, count, sizes.length, width) for count, width in sizes.convolved],
            like.new_empty(at_a_time, sizes.heads, sizes.length, sizes.length),
            like.new_empty(sizes.chunks - 1, sizes.heads, sizes.length, sizes.state_dim),
            like.new_zeros(sizes.inner + sizes.groups * sizes.state_dim),
        )


class Sums(NamedTuple):
    """Gradients of the parameters, in the parts that the kernels leave; the first axis is that of the sequences."""

    conv: Tensor  # [b, chunks, k + 1, channels], the last of k + 1 that of the bias
    dt_bias: Tensor  # [b, h]
    A: Tensor
    D: Tensor  # [b, chunks, h]
    norm: Tensor  # [b, pieces, heads * p]

    @classmethod
    def empty(cls, like: Tensor, sizes: Sizes) -> Sums:
        """Return uninitialized memory for all sequences, of the dtype and on the device of `like`."""
        batch, heads = sizes.batch, sizes.heads
        return cls(
            like.new_empty(batch, sizes.chunks, sizes.taps + 1, sizes.channels),
            like.new_empty(batch, heads),
            like.new_empty(batch, heads),
            like.new_empty(batch, sizes.chunks, heads),
            like.new_empty(batch, pieces(sizes.seq_len), sizes.inner),
        )


def views(of_all: PerSequence, index: int) -> PerSequence:
    """Return the views of one sequence."""
    return type(of_all)(*(tensor[index] for tensor in of_all))
