"""Rounding to FP8 against torch's casts and a grid in float64, and the scales of each recipe."""

import math

import pytest
import torch

from hybridtron.ops.fp8.formats import E4M3, E5M2, LARGEST, block_amax, count_lost, round_to
from hybridtron.ops.fp8.recipes import (
    RECIPES,
    e8m0_scale,
    power_of_two_scale,
    quantize,
    quantize_blocks,
    tensor_scale,
)

BITS = {E4M3: (3, -6), E5M2: (2, -14)}  # of the mantissa; exponent of the smallest normal number


def grid(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round by definition, in float64: to nearest even on the format's steps, the largest number at most."""
    mantissa, least = BITS[dtype]
    exponent = torch.frexp(x.double().abs()).exponent.sub(1).clamp(min=least)
    step = torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - mantissa)
    return (torch.round(x.double() / step) * step).clamp(-LARGEST[dtype], LARGEST[dtype])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rounding_is_that_of_torch_with_saturation(dtype):
    largest = LARGEST[dtype]
    everywhere = torch.logspace(-30, 20, 4001, base=2.0, dtype=torch.float64).float()
    edges = torch.tensor([0.0, -0.0, largest, largest * 1.01, 2 * largest, 1e30, math.inf])
    x = torch.cat([everywhere, edges])
    x = torch.cat([x, -x])
    rounded = round_to(x, dtype)
    assert torch.equal(rounded.view(torch.uint8), x.clamp(-largest, largest).to(dtype).view(torch.uint8))
    finite = x.isfinite()
    assert torch.equal(rounded.double()[finite], grid(x, dtype)[finite])
    assert rounded.float().abs().max() == largest
    assert round_to(torch.tensor([math.nan]), dtype).float().isnan().all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_number_of_the_format_stays(dtype):
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    numbers = numbers[numbers.float().isfinite()]
    assert torch.equal(round_to(numbers.float(), dtype).view(torch.uint8), numbers.view(torch.uint8))


def test_the_scale_of_a_tensor_takes_its_largest_value_to_the_largest_number():
    amax = torch.tensor([448.0, 1.0, 7.0, 0.0, math.inf, 1e-44])
    scale = tensor_scale(amax, E4M3)
    assert scale.tolist()[:5] == [1.0, 448.0, 64.0, 1.0, 1.0]
    assert scale[5] == torch.finfo(torch.float32).max
    one = quantize(torch.tensor([[7.0, -3.5]]), tensor_scale(torch.tensor(7.0), E4M3), E4M3)
    assert one.data.float().tolist() == [[448.0, -224.0]]
    assert one.values().tolist() == [[7.0, -3.5]]


def test_scales_of_blocks_are_powers_of_two_that_do_not_saturate():
    amax = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 2000)
    for rule in (power_of_two_scale, e8m0_scale):
        scale = rule(amax, E4M3)
        assert (torch.frexp(scale).mantissa == 0.5).all()
        scaled = scale.double() * amax.double()
        assert (scaled <= 448).all()
        assert (scaled > 448 / 2.0001).all()  # the largest such power, but for the rounding of 1 / 448
    assert e8m0_scale(torch.tensor(0.0), E4M3) == 2.0**127


def test_each_block_has_its_scale():
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    x[:, 130] *= 1e4  # an outlier costs only its own block precision
    spec = RECIPES["blockwise"]
    over_columns, over_rows = spec.blocks("x")
    assert (over_columns, over_rows, spec.blocks("weight")) == ((1, 128), (128, 1), ((128, 128), (128, 128)))
    assert block_amax(x, over_columns).shape == (200, 3)
    for block in (over_columns, over_rows, (128, 128)):
        q = quantize_blocks(x, block, spec, E4M3)
        error = (q.values() - x).abs()
        limit = block_amax(x, block).repeat_interleave(block[0], 0)[:200].repeat_interleave(block[1], 1)[:, :300]
        assert (error <= limit / 16).all()
    near = quantize_blocks(x, over_columns, spec, E4M3).values()[:, :128]
    assert (near - x[:, :128]).norm() < 0.03 * x[:, :128].norm()
    flat = quantize(x, tensor_scale(x.abs().max(), E5M2), E5M2).values()[:, :128]
    assert (flat - x[:, :128]).norm() > 0.05 * x[:, :128].norm()


def test_lost_values_are_counted():
    x = torch.tensor([[1.0, 500.0, 460.0, 1e-4, 0.0, -1e-4]])
    assert count_lost(x, quantize(x, torch.tensor(1.0), E4M3)).tolist() == [1, 2, 6]
