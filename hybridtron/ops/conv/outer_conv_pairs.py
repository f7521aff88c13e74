"""Multi-head Hyena's convolution as attention: scores q_t . k_j weighted by h_{t - j}, with no normalisation.

The square of pairs is worked on in tiles that stay in a core's cache, and those above the diagonal are left out. Keys
and values are taken last token first: the weights of a tile then are a view of the filter, entry (r, c) of it at r + c.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import TILE_ROWS, num_pairs, runs
from hybridtron.ops.device import device_type
from hybridtron.ops.elementwise.row_blocks import block_length

_COLUMNS = 512  # keys of a tile on a CPU; elsewhere all
_KEPT_SCORES = 1 << 24  # above this many (64 MiB of float32 a layer) backward computes them again


def forward(q: Tensor, k: Tensor, v: Tensor, h: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y [b, s, m, d] and the scores of all tiles [m, b, n] for `gradients`; n is 0 if they are not kept."""
    batch, seq_len, heads, _ = q.shape
    q, k, v, ramp = *_arranged(q, k, v), _ramp(h)
    num_scores = num_pairs(seq_len)
    keep = keep and heads * batch * num_scores <= _KEPT_SCORES
    kept = q.new_empty(heads, batch, num_scores if keep else 0)
    y = torch.zeros_like(q)
    for at in _matrices_at_a_time(q):
        queries, keys, values, outputs = (t[at].flatten(0, 1) for t in (q, k, v, y))
        weights, buffers = ramp[at[0]], _TileBuffers(queries)
        for rows, columns, places in _tiles(q):
            scores = buffers(0, rows.stop - rows.start, columns.stop - columns.start)
            torch.bmm(queries[:, rows], keys[:, columns].transpose(1, 2), out=scores)
            if keep:
                kept[(*at, places)].copy_(scores.view(*kept[at].shape[:2], -1))
            _weigh(scores, weights, rows, columns)
            outputs[:, rows].add_(torch.bmm(scores, values[:, columns]))
    return y.permute(1, 2, 0, 3), kept


def gradients(
    q: Tensor, k: Tensor, v: Tensor, h: Tensor, kept: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, ramp = *_arranged(q, k, v), _ramp(h)
    dy = dy.permute(2, 0, 1, 3).contiguous()
    dq, dk, dv, dramp = (torch.zeros_like(t) for t in (q, k, v, ramp))
    for at in _matrices_at_a_time(q):
        queries, keys, values, grads, dqueries, dkeys, dvalues = (
            t[at].flatten(0, 1) for t in (q, k, v, dy, dq, dk, dv)
        )
        weights, dweights = ramp[at[0]], dramp[at[0]]
        buffers = _TileBuffers(queries)
        for rows, columns, places in _tiles(q):
            scores, work = (buffers(index, rows.stop - rows.start, columns.stop - columns.start) for index in (0, 1))
            if kept.numel():
                scores = kept[(*at, places)].reshape(scores.shape)
            else:
                torch.bmm(queries[:, rows], keys[:, columns].transpose(1, 2), out=scores)
            _weigh(work.copy_(scores), weights, rows, columns)
            dvalues[:, columns].add_(torch.bmm(work.transpose(1, 2), grads[:, rows]))
            torch.bmm(grads[:, rows], values[:, columns].transpose(1, 2), out=work)
            first = rows.start + columns.start
            by_weight = _sums_of_diagonals(buffers, work, scores)  # [m * b, rows + columns - 1]
            dweights[:, first : first + by_weight.shape[1]] += by_weight.unflatten(0, (len(dweights), -1)).sum(1)
            _weigh(work, weights, rows, columns)
            dqueries[:, rows].add_(torch.bmm(work, keys[:, columns]))
            dkeys[:, columns].add_(torch.bmm(work.transpose(1, 2), queries[:, rows]))
    dq, dk, dv = (t.permute(1, 2, 0, 3) for t in (dq, dk.flip(2), dv.flip(2)))
    return dq, dk, dv, dramp[:, q.shape[2] - 1 :]


def _arranged(q: Tensor, k: Tensor, v: Tensor) -> Iterator[Tensor]:
    """Return each as [m, b, s, d], keys and values last token first."""
    return (t.permute(2, 0, 1, 3).contiguous() for t in (q, k.flip(1), v.flip(1)))


def _ramp(h: Tensor) -> Tensor:
    """Return [m, 2 s - 1]: at t + (s - 1 - j) the weight h_{t - j} of key j for query t, zero for later keys."""
    return F.pad(h, (h.shape[1] - 1, 0))


def _tiles(q: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield queries, keys (last first) and the places among the kept scores of every tile of q [.., s, d]."""
    seq_len, place = q.shape[-2], 0
    for rows in runs(seq_len, TILE_ROWS):
        first = seq_len - rows.stop
        for columns in runs(rows.stop, _COLUMNS if device_type(q.device) == "cpu" else seq_len):
            size = (rows.stop - rows.start) * (columns.stop - columns.start)
            yield rows, slice(first + columns.start, first + columns.stop), slice(place, place + size)
            place += size


def _matrices_at_a_time(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield heads and sequences of q [m, b, s, d] whose tiles stay in cache together."""
    heads, batch, seq_len, _ = q.shape
    columns = min(seq_len, _COLUMNS) if device_type(q.device) == "cpu" else seq_len
    return heads_and_sequences(heads, batch, block_length(min(seq_len, TILE_ROWS) * columns, q.device))


def heads_and_sequences(heads: int, batch: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Yield pairs of heads and sequences, about `step` at a time: all sequences of some heads, or some of one head."""
    for some in runs(heads, max(1, step // batch)):
        for sequences in runs(batch, min(batch, step)):
            yield some, sequences


def _weigh(scores: Tensor, ramp: Tensor, rows: slice, columns: slice) -> None:
    """Multiply scores [m * b, rows, columns] by the weights of their tile."""
    part = ramp[:, rows.start + columns.start : rows.stop + columns.stop - 1]
    weights = part.unfold(-1, scores.shape[2], 1).unsqueeze(1)  # [m, 1, rows, columns]
    scores.unflatten(0, (len(ramp), -1)).mul_(weights)


class _TileBuffers:
    """Memory for the tiles of so many matrices, used again for every tile; zeros at first."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.held = like, dict[tuple[int, ...], Tensor]()

    def __call__(self, index: int, rows: int, columns: int) -> Tensor:
        place = index, rows, columns
        if place not in self.held:
            self.held[place] = self.like.new_zeros(len(self.like), rows, columns)
        return self.held[place]


def _sums_of_diagonals(buffers: _TileBuffers, a: Tensor, b: Tensor) -> Tensor:
    """Return sums of (a b)[.., r, c] over equal r + c: [matrices, rows + columns - 1]."""
    rows, columns = a.shape[1:]
    width = rows + columns
    skewed = buffers(2, rows, width)  # row r begins r places later; what lies beside the tile stays zero
    torch.mul(a, b, out=skewed.as_strided(a.shape, (rows * width, width + 1, 1)))
    return skewed.sum(1)[:, :-1]
