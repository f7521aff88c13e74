"""Multi-head Hyena's convolution by Fourier transforms of the products k_n v_p of all channels n and p of a head.

The d * d products of a head are taken a few rows of k at a time and never kept: backward makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridtron.ops.conv.outer_conv_pairs import heads_and_sequences
from hybridtron.ops.cuts import fft_size, runs
from hybridtron.ops.elementwise.row_blocks import block_length

_SIGNALS = 32  # transformed at a time at least: a call makes its tables anew


def forward(q: Tensor, k: Tensor, v: Tensor, h: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y [b, s, m, d], and [m, b, 0] because nothing is kept."""
    batch, seq_len, heads, _ = q.shape
    q, k, v = (_by_channel(t) for t in (q, k, v))
    y = torch.zeros_like(v)
    size, products = _product_buffer(q)
    filters_f = torch.fft.rfft(h, size, norm="forward")[:, None, None, None]
    for at, rows in _parts(q, products):
        spectra = _transform_products(products, k[at][:, :, rows], v[at]).mul_(filters_f[at[0]])
        states = torch.fft.irfft(spectra, size, norm="forward")[..., :seq_len]  # [m, b, rows, d, s]
        for index, state in enumerate(states.unbind(2), rows.start):
            y[at].addcmul_(q[at][:, :, index, None], state)
    return y.permute(1, 3, 0, 2), q.new_empty(heads, batch, 0)


def gradients(
    q: Tensor, k: Tensor, v: Tensor, h: Tensor, kept: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    seq_len = q.shape[1]
    q, k, v, dy = (_by_channel(t) for t in (q, k, v, dy))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.zeros_like(v)
    size, products = _product_buffer(q)
    filters_f = torch.fft.rfft(h, size, norm="forward")[:, None, None, None]
    conjugates, dfilters_f = filters_f.conj().resolve_conj(), torch.zeros_like(filters_f)
    for at, rows in _parts(q, products):
        spectra = _transform_products(products, k[at][:, :, rows], v[at])
        states = torch.fft.irfft(spectra * filters_f[at[0]], size, norm="forward")[..., :seq_len]
        dq[at][:, :, rows] = states.mul_(dy[at].unsqueeze(2)).sum(3)
        dspectra = _transform_products(products, q[at][:, :, rows], dy[at])
        dfilters_f[at[0]] += spectra.conj_physical_().mul_(dspectra).sum((1, 2, 3), keepdim=True)
        dproducts = torch.fft.irfft(dspectra.mul_(conjugates[at[0]]), size, norm="forward")[..., :seq_len]
        for index, dproduct in enumerate(dproducts.unbind(2), rows.start):
            dv[at].addcmul_(k[at][:, :, index, None], dproduct)
        dk[at][:, :, rows] = dproducts.mul_(v[at].unsqueeze(2)).sum(3)
    dh = torch.fft.irfft(dfilters_f[:, 0, 0, 0], size)[:, :seq_len]
    return dq.permute(1, 3, 0, 2), dk.permute(1, 3, 0, 2), dv.permute(1, 3, 0, 2), dh


def _by_channel(t: Tensor) -> Tensor:
    """Return [b, s, m, d] as [m, b, d, s]."""
    return t.permute(2, 0, 3, 1).contiguous()


def _product_buffer(q: Tensor) -> tuple[int, Tensor]:
    """Return the size of the transforms of q [m, b, d, s] and zeros [n, d, size] for the products of n rows."""
    width, seq_len = q.shape[2:]
    size = fft_size(2 * seq_len - 1)
    signals = max(_SIGNALS, block_length(size, q.device))
    rows = min(max(1, signals // width), q[..., 0].numel())
    return size, q.new_zeros(rows, width, size)


def _parts(q: Tensor, buffer: Tensor) -> Iterator[tuple[tuple[slice, slice], slice]]:
    """Yield heads, sequences and rows of q [m, b, d, s] that fit the buffer."""
    heads, batch, width, _ = q.shape
    for at in heads_and_sequences(heads, batch, max(1, len(buffer) // width)):
        for rows in runs(width, min(width, len(buffer))):
            yield at, rows


def _transform_products(buffer: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the transforms [m, b, n, d, size / 2 + 1] of products of rows [m, b, n, s] and columns [m, b, d, s]."""
    places = buffer[: rows[..., 0].numel()].unflatten(0, rows.shape[:3])  # zero beyond s
    torch.mul(rows.unsqueeze(3), columns.unsqueeze(2), out=places[..., : rows.shape[3]])
    return torch.fft.rfft(places)
