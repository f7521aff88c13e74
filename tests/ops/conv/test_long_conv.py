import math
from itertools import pairwise

import pytest
import torch

from hybridtron.ops.conv.long_conv import convolve, long_conv, long_conv_reference
from hybridtron.ops.cuts import fft_size
from hybridtron.ops.flops import long_conv_fft_flops
from tests.ops.compare import assert_causal, assert_matches, assert_vmaps, leaf, token_major

LENGTHS = (1, 7, 59, 60, 61, 300, 1000)  # around a segment of 60, three times 20 taps and one more
TAPS = (1, 7, 20, 21, 128, 2000)  # added up, by segments, and longer than the sequence
pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_its_formula(seq_len, taps, groups):
    assert_matches(long_conv, long_conv_reference, (token_major(2, seq_len, 6), leaf(groups, taps)), 1e-5)


def test_equals_the_product_with_a_toeplitz_matrix():
    u, h = torch.randn(2, 200, 5, dtype=torch.float64), torch.randn(5, 200, dtype=torch.float64)
    lags = torch.arange(200).unsqueeze(1) - torch.arange(200)
    matrices = torch.where(lags >= 0, h[:, lags.clamp_min(0)], 0.0)  # [c, s, s]
    torch.testing.assert_close(long_conv(u, h), torch.einsum("cij,bjc->bic", matrices, u))


@pytest.mark.parametrize("taps", [7, 30, 150])
def test_causal(taps):
    h = torch.randn(6, taps)
    assert_causal(lambda u: long_conv(u, h) / h.abs().sum(), torch.randn(2, 150, 6))


@pytest.mark.parametrize("taps", [30, 3000])
def test_rounding_stays_below_the_stated_bound(taps):
    u, h = torch.randn(1, 3000, 6), torch.randn(6, taps)
    u[:, 1500:] *= 1e4
    bound = torch.finfo(torch.float32).eps * math.log2(4 * 3000) * h.square().sum(1).sqrt() * u.square().sum(1).sqrt()
    assert ((long_conv(u, h) - long_conv(u.double(), h.double())).abs() <= bound).all()


@pytest.mark.parametrize("taps", [7, 30, 300])
def test_bfloat16(taps):
    inputs = leaf(2, 300, 6, dtype=torch.bfloat16), leaf(3, taps, dtype=torch.bfloat16)
    assert_matches(long_conv, long_conv_reference, inputs, 8e-3)


def test_gradients_in_float64(monkeypatch):
    monkeypatch.setattr("hybridtron.ops.conv.long_conv.DIRECT_TAPS", 1)
    inputs = [leaf(2, 11, 4, dtype=torch.float64), leaf(2, 3, dtype=torch.float64)]  # in segments of nine
    monkeypatch.setattr("hybridtron.ops.cuts.SEGMENT", 1)
    assert torch.autograd.gradcheck(long_conv, inputs)


@pytest.mark.parametrize("taps", [3, 30])
def test_vmap(taps):
    assert_vmaps(long_conv, (leaf(2, 100, 4), leaf(2, taps)))


def test_sizes_of_transforms_are_even_and_have_small_factors():
    for least in range(1, 3000):
        size = fft_size(least)
        assert least <= size <= max(2, 1.25 * least + 2)
        assert size % 2 == 0
        for factor in (2, 3, 5):
            while size % factor == 0:
                size //= factor
        assert size == 1


def test_cost_per_token_grows_with_the_logarithm_of_the_length():
    per_token = [long_conv_fft_flops(length, 8, 8, length) / length for length in (512, 2048, 8192, 32768)]
    steps = [b - a for a, b in pairwise(per_token)]
    assert max(steps) < 1.05 * min(steps)


def test_the_convolution_can_be_cut_off():
    u, h = torch.randn(1, 2, 3, 20), torch.randn(2, 5)
    torch.testing.assert_close(convolve(u, h, 7), convolve(u, h, 24)[..., :7])
