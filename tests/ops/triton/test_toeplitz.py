"""Kernels of the medium convolution against its formula, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from hybridtron.ops.conv.long_conv import long_conv_reference
from hybridtron.ops.triton import toeplitz
from hybridtron.ops.triton.toeplitz import long_conv
from tests.ops.compare import assert_causal, assert_matches
from tests.ops.triton.tensors import DEVICE, leaf, token_major


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 16 tokens, the least of a matrix product."""
    monkeypatch.setattr(toeplitz, "_BLOCK_TOKENS", 16)


@pytest.mark.parametrize(
    ("tokens", "taps", "batch", "groups", "width"),
    [(1, 1, 1, 1, 1), (7, 30, 2, 2, 3), (33, 17, 1, 2, 5), (49, 21, 3, 1, 6)],
)
def test_matches_its_formula(tokens, taps, batch, groups, width):
    """Taps that reach beyond the sequence, end at the edge of a block, and blocks of columns that are not full."""
    inputs = token_major(batch, tokens, groups * width), leaf(groups, taps)
    assert_matches(long_conv, long_conv_reference, inputs, 1e-5)


def test_several_blocks_of_columns_and_programs():
    inputs = leaf(2, 40, 40), leaf(1, 20)
    assert_matches(long_conv, long_conv_reference, inputs, 1e-5)


def test_bfloat16():
    """Inputs, taps and results are rounded once each: three times half a unit in the last place, 2^-8."""
    inputs = leaf(1, 35, 16, dtype=torch.bfloat16), leaf(1, 21)
    assert_matches(long_conv, long_conv_reference, inputs, 1.2e-2)


def test_no_output_depends_on_a_later_token():
    h = torch.randn(1, 21, device=DEVICE)
    assert_causal(lambda x: long_conv(x, h), torch.randn(1, 36, 3, device=DEVICE))
