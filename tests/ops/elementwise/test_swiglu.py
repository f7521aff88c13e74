import pytest
import torch

from hybridtron.ops.elementwise.activations import swiglu, swiglu_reference
from tests.ops.compare import LENGTHS, assert_matches, assert_vmaps, leaf, token_major

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_its_formula(seq_len):
    assert_matches(swiglu, swiglu_reference, [token_major(2, seq_len, 2 * 341)], 1e-5)


def test_first_half_gates_the_second():
    gate, up = torch.tensor([0.0, 50.0]), torch.tensor([3.0, 4.0])
    torch.testing.assert_close(swiglu(torch.cat([gate, up])), torch.tensor([0.0, 200.0]))


def test_bfloat16():
    assert_matches(swiglu, swiglu_reference, [leaf(300, 64, dtype=torch.bfloat16)], 1.6e-2)


def test_gradients_in_float64():
    assert torch.autograd.gradcheck(swiglu, leaf(3, 4, 10, dtype=torch.float64))


def test_vmap():
    assert_vmaps(swiglu, [leaf(2, 5, 8)])
