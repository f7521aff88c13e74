import pytest
import torch

from hybridtron.ops.elementwise.norm import gated_rms_norm, gated_rms_norm_reference, rms_norm, rms_norm_reference
from tests.ops.compare import LENGTHS, assert_matches, assert_vmaps, leaf, token_major

pytestmark = pytest.mark.usefixtures("form")

EPS = 1e-5


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_rms_norm_matches_its_formula(seq_len):
    inputs = token_major(2, seq_len, 24), leaf(24)
    assert_matches(lambda *t: rms_norm(*t, EPS), lambda *t: rms_norm_reference(*t, EPS), inputs, 1e-5)


@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_gated_rms_norm_matches_its_formula(seq_len, num_groups):
    inputs = leaf(2, seq_len, 24), token_major(2, seq_len, 24), leaf(24)  # x and z need not lie alike in memory
    assert_matches(
        lambda *t: gated_rms_norm(*t, EPS, num_groups),
        lambda *t: gated_rms_norm_reference(*t, EPS, num_groups),
        inputs,
        1e-5,
    )


def test_rows_are_as_long_as_the_root_of_their_width():
    normed = rms_norm(torch.randn(5, 64) * 100, torch.ones(64), 0.0)
    torch.testing.assert_close(normed.norm(dim=-1), torch.full((5,), 8.0))


def test_gated_groups_do_not_see_each_other():
    x, z = torch.randn(3, 8), torch.randn(3, 8)
    changed = x.clone()
    changed[:, 4:] *= 7
    first, second = (gated_rms_norm(t, z, torch.ones(8), EPS, 2) for t in (x, changed))
    torch.testing.assert_close(first[:, :4], second[:, :4])


def test_bfloat16_is_accumulated_in_float32():
    x, z, weight = (leaf(*shape, dtype=torch.bfloat16) for shape in ((4, 33, 256), (4, 33, 256), (256,)))
    assert_matches(lambda *t: rms_norm(*t, EPS), lambda *t: rms_norm_reference(*t, EPS), (x, weight), 8e-3)
    assert_matches(
        lambda *t: gated_rms_norm(*t, EPS, 2), lambda *t: gated_rms_norm_reference(*t, EPS, 2), (x, z, weight), 8e-3
    )


def test_gradients_in_float64():
    x, z, weight = (leaf(*shape, dtype=torch.float64) for shape in ((2, 3, 8), (2, 3, 8), (8,)))
    assert torch.autograd.gradcheck(lambda *t: rms_norm(*t, EPS), (x, weight))
    assert torch.autograd.gradcheck(lambda *t: gated_rms_norm(*t, EPS, 2), (x, z, weight))


def test_vmap():
    assert_vmaps(lambda *t: rms_norm(*t, EPS), (leaf(2, 5, 8), leaf(8)))
    assert_vmaps(lambda *t: gated_rms_norm(*t, EPS, 2), (leaf(2, 5, 8), leaf(2, 5, 8), leaf(8)))
