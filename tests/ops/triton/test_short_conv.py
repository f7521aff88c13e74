"""Kernels of the short convolution against their formulas, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from hybridtron.ops.conv.short_conv import composed_gated_short_conv, short_conv_reference
from hybridtron.ops.triton.short_conv import gated_short_conv, short_conv
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import leaf, token_major

# sequence length, channels and taps, on both sides of a block of 64 tokens
SHAPES = [(1, 1, 1), (7, 12, 4), (65, 5, 3)]


@pytest.mark.parametrize(("tokens", "channels", "taps"), SHAPES)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_short_conv(tokens, channels, taps, activation):
    inputs = token_major(2, tokens, channels), leaf(channels, taps), leaf(channels)
    assert_matches(lambda *t: short_conv(*t, activation), lambda *t: short_conv_reference(*t, activation), inputs, 1e-5)


@pytest.mark.parametrize(("tokens", "channels", "taps"), [*SHAPES, (9, 4, 10)])
def test_gated_short_conv(tokens, channels, taps):
    before, x = token_major(2, tokens, channels), token_major(2, tokens, channels)
    after = leaf(2, tokens, channels)  # the three need not lie alike in memory
    inputs = before, x, after, leaf(channels, taps)
    assert_matches(lambda *t: gated_short_conv(*t, None), lambda *t: composed_gated_short_conv(*t, None), inputs, 1e-5)


def test_programs_join_without_a_seam(monkeypatch):
    """Several blocks of channels, and several programs that each add up several blocks of tokens."""
    monkeypatch.setattr("hybridtron.ops.triton.short_conv._TILE_ELEMENTS", 32)
    monkeypatch.setattr("hybridtron.ops.triton.short_conv._BACKWARD_TILE_ELEMENTS", 32)
    monkeypatch.setattr("hybridtron.ops.triton.short_conv._TILE_CHANNELS", 4)
    monkeypatch.setattr("hybridtron.ops.triton.short_conv._BACKWARD_BLOCKS", 2)
    inputs = token_major(1, 20, 5), leaf(5, 3), leaf(5)
    assert_matches(lambda *t: short_conv(*t, "silu"), lambda *t: short_conv_reference(*t, "silu"), inputs, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_accumulated_in_float32(dtype):
    """Only results are rounded: the bound is one unit in the last place of bfloat16."""
    inputs = [leaf(*shape, dtype=dtype) for shape in ((1, 17, 12), (12, 4), (12,))]
    assert_matches(lambda *t: short_conv(*t, "silu"), lambda *t: short_conv_reference(*t, "silu"), inputs, 8e-3)
    gates = [leaf(1, 17, 12, dtype=dtype) for _ in range(2)]
    inputs = [gates[0], inputs[0], gates[1], *inputs[1:]]
    assert_matches(gated_short_conv, composed_gated_short_conv, inputs, 8e-3)
