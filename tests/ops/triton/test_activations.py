"""Kernels of SwiGLU and the squared ReLU against their formulas, in Triton's interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.elementwise.activations import swiglu_reference
from hybridtron.ops.triton.activations import relu2, swiglu
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import DEVICE, leaf, token_major

FORMS = {"swiglu": (swiglu, swiglu_reference), "relu2": (relu2, lambda x: F.relu(x).square())}


@pytest.fixture(params=FORMS)
def forms(request):
    return FORMS[request.param]


@pytest.mark.parametrize(("tokens", "channels"), [(1, 2), (7, 6), (33, 2 * 341)])
def test_matches_its_formula(forms, tokens, channels):
    assert_matches(*forms, [token_major(2, tokens, channels)], 1e-5)


def test_rows_may_be_strided_views(forms):
    def of_columns(function):
        return lambda x: function(x[:, 1:, 3:13])

    assert_matches(*(of_columns(form) for form in forms), [leaf(3, 5, 17)], 1e-5)


def test_tiles_join_without_a_seam(forms, monkeypatch):
    monkeypatch.setattr("hybridtron.ops.triton.activations._TILE_ELEMENTS", 16)
    monkeypatch.setattr("hybridtron.ops.triton.activations._TILE_WIDTH", 8)
    assert_matches(*forms, [leaf(5, 38)], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_computed_in_float32(forms, dtype):
    """Only results are rounded: the bound is one unit in the last place of bfloat16."""
    x = leaf(9, 2, 40, dtype=dtype)
    assert_matches(*forms, [x], 8e-3)
    assert forms[0](x).dtype == dtype


def test_one_axis_and_no_rows(forms):
    assert_matches(*forms, [leaf(6)], 1e-5)
    x = leaf(0, 6)
    y = forms[0](x)
    assert y.shape == forms[1](x).shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_numbers_that_are_not_finite_show(forms):
    x = torch.tensor([float("nan"), -1.0, 2.0, float("inf")], device=DEVICE, requires_grad=True)
    actual, expected = (form(x) for form in forms)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    gradients = (torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected))
    torch.testing.assert_close(*gradients, equal_nan=True)
