"""The kernel of the rotary embedding against its formula, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from hybridtron.ops.attention import rotary
from hybridtron.ops.triton.rotary import apply_rotary
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import DEVICE, leaf, token_major


def assert_rotates(x, rotary_dim, bound, of=lambda x: x, dtype=torch.float32):
    tables = rotary.rotary_tables(of(x).shape[1], rotary_dim, device=DEVICE, dtype=dtype)
    assert_matches(
        lambda x: apply_rotary(of(x), *tables), lambda x: rotary.rotary_reference(of(x), *tables), [x], bound
    )


@pytest.mark.parametrize("rotary_dim", [4, 6, 12])  # of 12 channels
@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (7, 4), (65, 5)])
def test_matches_its_formula(tokens, heads, rotary_dim):
    assert_rotates(token_major(2, tokens, heads, 12), rotary_dim, 1e-6)


def test_channels_may_be_part_of_wider_heads():
    """As of latent attention, which rotates the last channels of each head."""
    assert_rotates(leaf(2, 9, 3, 20), 8, 1e-6, of=lambda x: x[..., 7:])


def test_channels_need_not_be_contiguous():
    assert_rotates(leaf(2, 9, 10, 3), 8, 1e-6, of=lambda x: x.mT)


def test_one_head_may_stand_for_several():
    assert_rotates(leaf(2, 9, 1, 8), 8, 1e-6, of=lambda x: x.expand(-1, -1, 3, -1))


def test_the_result_lies_head_by_head_and_the_gradient_as_the_input():
    x, tables = token_major(2, 5, 3, 8), rotary.rotary_tables(5, 8, device=DEVICE)
    y = apply_rotary(x, *tables)
    assert y.transpose(1, 2).is_contiguous()
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.transpose(0, 1).is_contiguous()  # token by token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_rotated_in_float32(dtype):
    """Only results are rounded: the bound is one unit in the last place of bfloat16."""
    x = leaf(2, 33, 2, 20, dtype=dtype)
    assert_rotates(x, 16, 8e-3)
    assert_rotates(x, 16, 8e-3, dtype=dtype)
    assert apply_rotary(x, *rotary.rotary_tables(33, 16, device=DEVICE)).dtype == dtype
