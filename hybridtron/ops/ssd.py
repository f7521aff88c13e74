"""Mamba-2's state-space duality (Dao & Gu 2024, arXiv 2405.21060): a selective state space with one decay per head.

For every head, with state S [n, p], decay a_t = exp(dt_t A) and the B, C of the head's group:
    S_t = a_t S_{t-1} + dt_t B_t x_t^T,    y_t = S_t^T C_t + D x_t.

The chunked form (section 6) cuts the sequence into chunks of length l. Within a chunk, with c_i the sum of dt A up to i,
    y_i = sum_{j <= i} M_ij x_j,    M_ij = (C_i . B_j) exp(c_i - c_j) dt_j,    D added on the diagonal of M,
and chunks hand on a state: y_i gains exp(c_i) S^T C_i, and S becomes exp(c_l) S + sum_j exp(c_l - c_j) dt_j B_j x_j^T.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.blocks import runs
from hybridtron.ops.precision import accumulation_dtype, under_transforms

TINY = 1e-20
BLOCK = 1 << 18


class Chunks(NamedTuple):
    count: int
    length: int


def chunks(seq_len: int, chunk_size: int) -> Chunks:
    """The fewest chunks of at most chunk_size tokens, of equal length: 300 tokens in chunks of 256 are two of 150."""
    count = -(-seq_len // chunk_size)
    return Chunks(count, -(-seq_len // count))


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk_size: int) -> Tensor:
    count, length = chunks(x.shape[1], chunk_size)
    padding = count * length - x.shape[1]
    if padding:
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, padding))
    y = _SSD.apply(x, dt, A, B, C, D, length)
    return y[:, : y.shape[1] - padding]


def _chunked(x, l):
    """[b, s, g, k] -> [b, c, g, l, k]  (view)"""
    return x.unflatten(1, (-1, l)).transpose(2, 3)


def _exponents(dt, A, l, dtype):
    """c [b,c,h,l] cumulative"""
    step = dt.to(dtype).unflatten(1, (-1, l)).transpose(2, 3).contiguous()  # [b, c, h, l]
    total = (step * A.to(dtype)[:, None]).cumsum(-1)
    return step, total


def _decays(total, source, out=None):
    """exp(total_i - source_j) for j <= i, else 0"""
    L = torch.sub(total.unsqueeze(-1), source.unsqueeze(-2), out=out)
    return L.exp_().tril_()


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, l):
        b, s, h, p = x.shape
        g, n = B.shape[2:]
        r, c = h // g, s // l
        acc, md = accumulation_dtype(x), x.dtype
        step, total = _exponents(dt, A, l, acc)
        source = total - step.clamp_min(TINY).log()
        xc, Bc, Cc = _chunked(x, l), _chunked(B, l), _chunked(C, l)  # [b, c, ., l, .] views
        y = torch.empty_like(x)
        yc = _chunked(y, l)
        CB = torch.empty(b, c, g, l, l, dtype=md)
        S = torch.empty(b, c - 1, g, n, r, p, dtype=md)
        Yoff = torch.empty(b, c - 1, g, l, r, p, dtype=md)
        weight = (total[..., -1:] - total).exp_().mul_(step)  # [b,c,h,l]
        decay = total.exp()  # [b,c,h,l]
        bg = max(1, BLOCK // (c * h * l * max(l, p)))
        for run in runs(b, bg):
            bb = run.stop - run.start
            X = xc[run].contiguous()
            Bi, Ci = Bc[run].contiguous(), Cc[run].contiguous()
            cb = CB[run].view(-1, l, l)
            torch.bmm(Ci.view(-1, l, n), Bi.view(-1, l, n).transpose(1, 2), out=cb)
            L = _decays(total[run], source[run])  # [bb,c,h,l,l]
            M = L.view(bb, c, g, r, l, l).mul_(cb.view(bb, c, g, 1, l, l)).view(-1, l, l)
            if D is not None:
                M.view(bb, c, h, l, l).diagonal(dim1=-2, dim2=-1).add_(D.to(acc)[:, None])
            Y = torch.bmm(M.to(md), X.view(-1, l, p)).view(bb, c, h, l, p)
            if c > 1:
                w = weight[run, :-1].view(bb, c - 1, g, r, l).transpose(3, 4).unsqueeze(-1)  # [bb,c-1,g,l,r,1]
                Xw = X[:, :-1].view(bb, c - 1, g, r, l, p).transpose(3, 4) * w  # strided result?
                Xw = Xw.contiguous().view(-1, l, r * p)
                St = S[run]
                torch.bmm(Bi[:, :-1].reshape(-1, l, n).transpose(1, 2), Xw, out=St.view(-1, n, r * p))
                for k in range(1, c - 1):
                    St[:, k].addcmul_(St[:, k - 1], decay[run, k, :, -1].view(bb, g, 1, r, 1))
                Yo = Yoff[run]
                torch.bmm(Ci[:, 1:].reshape(-1, l, n), St.view(-1, n, r * p), out=Yo.view(-1, l, r * p))
                de = decay[run, 1:].view(bb, c - 1, g, r, l, 1)
                yc[run, 0] = Y[:, 0]
                torch.addcmul(
                    Y[:, 1:],
                    Yo.transpose(3, 4).reshape(bb, c - 1, h, l, p)
                    if False
                    else Yo.permute(0, 1, 2, 4, 3, 5).flatten(2, 3),
                    de.flatten(2, 3),
                    out=yc[run, 1:],
                )
            else:
                yc[run] = Y
        ctx.save_for_backward(x, dt, A, B, C, D, CB, S, Yoff, step, total, source, weight, decay)
        ctx.l = l
        ctx.bg = bg
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, dt, A, B, C, D, CB, S, Yoff, step, total, source, weight, decay = ctx.saved_tensors
        l, bg = ctx.l, ctx.bg
        b, s, h, p = x.shape
        g, n = B.shape[2:]
        r, c = h // g, s // l
        acc, md = accumulation_dtype(x), x.dtype
        xc, Bc, Cc, gc = (_chunked(t, l) for t in (x, B, C, grad))
        dx, dB, dC = torch.empty_like(x), torch.empty_like(B), torch.empty_like(C)
        dxc, dBc, dCc = (_chunked(t, l) for t in (dx, dB, dC))
        dtotal = torch.zeros_like(total)
        dsource = torch.zeros_like(total)  # d / d log dt_j  of M
        dweight = torch.zeros_like(total)
        dD = None if D is None else torch.zeros_like(D, dtype=acc)
        for run in runs(b, bg):
            bb = run.stop - run.start
            X, Bi, Ci, dY = xc[run].contiguous(), Bc[run].contiguous(), Cc[run].contiguous(), gc[run].contiguous()
            cb = CB[run].view(bb, c, g, 1, l, l)
            L = _decays(total[run], source[run])
            M = (L.view(bb, c, g, r, l, l) * cb).view(bb * c * h, l, l)
            if D is not None:
                M.view(bb, c, h, l, l).diagonal(dim1=-2, dim2=-1).add_(D.to(acc)[:, None])
            dX = torch.bmm(M.to(md).transpose(1, 2), dY.view(-1, l, p)).view(bb, c, h, l, p)
            dM = torch.bmm(dY.view(-1, l, p), X.view(-1, l, p).transpose(1, 2)).view(bb, c, h, l, l)
            if D is not None:
                dD += dM.diagonal(dim1=-2, dim2=-1).sum((0, 1, 3))
            dCBh = dM.mul_(L)
            Z = torch.mul(dCBh.view(bb, c, g, r, l, l), cb, out=M.view(bb, c, g, r, l, l))
            dtotal[run] = Z.sum(-1).view(bb, c, h, l)
            dsource[run] = Z.sum(-2).view(bb, c, h, l)
            dCB = (dCBh.view(bb, c, g, r, l, l).sum(3) if r > 1 else dCBh).view(-1, l, l)
            dCi = torch.bmm(dCB, Bi.view(-1, l, n)).view(bb, c, g, l, n)
            dBi = torch.bmm(dCB.transpose(1, 2), Ci.view(-1, l, n)).view(bb, c, g, l, n)
            if c > 1:
                w = weight[run, :-1].view(bb, c - 1, g, r, l).transpose(3, 4).unsqueeze(-1)  # [bb,c-1,g,l,r,1]
                de = decay[run, 1:].view(bb, c - 1, g, r, l).transpose(3, 4).unsqueeze(-1)  # [bb,c-1,g,l,r,1]
                dYg = dY[:, 1:].view(bb, c - 1, g, r, l, p).transpose(3, 4)
                dYe = (dYg * de).contiguous()  # [bb,c-1,g,l,r,p]
                dtotal[run, 1:] += (dYe * Yoff[run]).sum(-1).transpose(3, 4).reshape(bb, c - 1, h, l)
                St = S[run]
                dYe = dYe.view(-1, l, r * p)
                dCi[:, 1:] += torch.bmm(dYe, St.view(-1, n, r * p).transpose(1, 2)).view(bb, c - 1, g, l, n)
                G = torch.bmm(Ci[:, 1:].reshape(-1, l, n).transpose(1, 2), dYe).view(bb, c - 1, g, n, r, p)
                for k in range(c - 3, -1, -1):
                    # S_{k+1} = decay_{k+1} S_k + ...
                    f = decay[run, k + 1, :, -1].view(bb, g, 1, r, 1)
                    G[:, k].addcmul_(G[:, k + 1], f)
                    dtotal[run, k + 1, :, -1] += ((G[:, k + 1] * St[:, k]).sum((2, 4)) * f[:, :, 0, :, 0]).view(bb, h)
                Xw = (X[:, :-1].view(bb, c - 1, g, r, l, p).transpose(3, 4) * w).contiguous().view(-1, l, r * p)
                G = G.view(-1, n, r * p)
                dBi[:, :-1] += torch.bmm(Xw, G.transpose(1, 2)).view(bb, c - 1, g, l, n)
                dXw = torch.bmm(Bi[:, :-1].reshape(-1, l, n), G).view(bb, c - 1, g, l, r, p)
                dX[:, :-1].view(bb, c - 1, g, r, l, p).transpose(3, 4).addcmul_(dXw, w)
                dweight[run, :-1] = (
                    (dXw * X[:, :-1].view(bb, c - 1, g, r, l, p).transpose(3, 4))
                    .sum(-1)
                    .transpose(3, 4)
                    .reshape(bb, c - 1, h, l)
                )
            dxc[run] = dX
            dBc[run] = dBi
            dCc[run] = dCi
        # weight_j = exp(total_l - total_j) dt_j ; source_j = total_j - log dt_j
        dlog = dweight * weight
        dstep = dsource / step.clamp_min(TINY) + dweight * (total[..., -1:] - total).exp()
        dtotal -= dsource
        dtotal -= dlog
        dtotal[..., -1] += dlog.sum(-1)
        da = dtotal.flip(-1).cumsum(-1).flip(-1)
        dA = (da * step).sum((0, 1, 3))
        dstep += da * A.to(acc)[:, None]
        ddt = dstep.transpose(2, 3).reshape(b, s, h)
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, None if D is None else dD.to(D.dtype), None


def ssd_reference(x, dt, A, B, C, D=None, initial_state=None):
    x, dt, A, B, C = (t.double() for t in (x, dt, A, B, C))
    b, s, h, p = x.shape
    r = h // B.shape[2]
    B, C = B.repeat_interleave(r, 2), C.repeat_interleave(r, 2)
    state = x.new_zeros(b, h, p, B.shape[-1]) if initial_state is None else initial_state.double()
    ys = []
    for t in range(s):
        state = (
            state * (dt[:, t] * A).exp()[..., None, None] + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        )
        ys.append((state @ C[:, t, :, :, None]).squeeze(-1))
    y = torch.stack(ys, 1)
    return (y if D is None else y + D.double()[:, None] * x), state
