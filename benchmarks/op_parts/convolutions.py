"""Forms of convolutions: what one would write first, and the public ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """A short convolution as a sum of shifted copies."""
    taps = weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    return sum((padded[:, j : j + x.shape[1]] * weight[:, j] for j in range(taps)), torch.zeros(()))


def conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise causal convolution as in transformers and mamba-ssm's reference."""
    flipped = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.conv1d(flipped, weight.unsqueeze(1), groups=x.shape[2]).transpose(1, 2)


def windows(x: Tensor, taps: Tensor) -> Tensor:
    """Compute a convolution with taps of tokens as Jet-Nemotron's plain form: a sum over windows of inputs."""
    padded = F.pad(x, (0, 0, taps.shape[2] - 1, 0))
    return (padded.unfold(1, taps.shape[2], 1).transpose(2, 3) * taps).sum(2)


def direct(u: Tensor, h: Tensor) -> Tensor:
    return conv1d(u, h.flip(1))


def padded_fft(u: Tensor, h: Tensor) -> Tensor:
    """The long convolution as published with H3 and Hyena: transforms of twice the length."""
    n = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=n) * (torch.fft.rfft(h, n=n) / n)
    return torch.fft.irfft(spectrum, n=n, norm="forward")[..., : u.shape[1]].transpose(1, 2)


def all_products(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Multi-head Hyena by its definition: every product of keys and values convolved, states of all tokens kept."""
    states = torch.einsum("bsmn,bsmp->bmnps", k, v)
    n = 2 * k.shape[1]
    spectrum = torch.fft.rfft(states, n=n) * torch.fft.rfft(h, n=n)[:, None, None]
    return torch.einsum("bsmn,bmnps->bsmp", q, torch.fft.irfft(spectrum, n=n)[..., : k.shape[1]])
