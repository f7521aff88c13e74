"""Kernels of the norms against their formulas, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from hybridtron.ops.elementwise.norm import composed_norm_and_gate, gated_rms_norm_reference, rms_norm_reference
from hybridtron.ops.triton.norm import gated_rms_norm, norm_and_gate, rms_norm
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import leaf, token_major

EPS = 1e-5


@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_rms_norm(tokens):
    inputs = token_major(2, tokens, 24), leaf(24)
    assert_matches(lambda *t: rms_norm(*t, EPS), lambda *t: rms_norm_reference(*t, EPS), inputs, 1e-5)


@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (7, 4), (33, 2)])
def test_gated_rms_norm(tokens, groups):
    inputs = leaf(2, tokens, 24), token_major(2, tokens, 24), leaf(24)  # x and z need not lie alike in memory
    assert_matches(
        lambda *t: gated_rms_norm(*t, EPS, groups), lambda *t: gated_rms_norm_reference(*t, EPS, groups), inputs, 1e-5
    )


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (7, 3), (65, 2)])
def test_norm_and_gate(tokens, heads):
    inputs = leaf(2, tokens, heads, 20), token_major(2, tokens, heads, 20), leaf(20)
    assert_matches(lambda *t: norm_and_gate(*t, EPS), lambda *t: composed_norm_and_gate(*t, EPS), inputs, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_accumulated_in_float32(dtype):
    """Only results are rounded: the bound is one unit in the last place of bfloat16."""
    x, z = (leaf(9, 2, 40, dtype=dtype) for _ in range(2))
    weight = leaf(40)  # float32 beside narrow inputs, as of a zero-centered norm
    assert_matches(lambda *t: rms_norm(*t, EPS), lambda *t: rms_norm_reference(*t, EPS), (x, weight), 8e-3)
    assert_matches(lambda *t: norm_and_gate(*t, EPS), lambda *t: composed_norm_and_gate(*t, EPS), (x, z, weight), 8e-3)
    weight = leaf(40, dtype=dtype)
    assert_matches(
        lambda *t: gated_rms_norm(*t, EPS, 2), lambda *t: gated_rms_norm_reference(*t, EPS, 2), (x, z, weight), 8e-3
    )
    assert norm_and_gate(x, z, weight, EPS).dtype == dtype
