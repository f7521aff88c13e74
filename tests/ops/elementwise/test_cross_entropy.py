import math

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.elementwise.cross_entropy import cross_entropy, cross_entropy_reference
from tests.ops.compare import LENGTHS, assert_matches, assert_vmaps, leaf, token_major


@pytest.mark.parametrize("vocab_size", [2, 1000, 70000])  # the last is wider than a block of elements
@pytest.mark.parametrize("seq_len", [length for length in LENGTHS if length < 100])
def test_matches_its_formula(seq_len, vocab_size):
    targets = torch.randint(0, vocab_size, (2, seq_len))
    logits = token_major(2, seq_len, vocab_size) if vocab_size < 5000 else leaf(2, 1, vocab_size)
    targets = targets[:, : logits.shape[1]]
    assert_matches(lambda x: cross_entropy(x, targets), lambda x: cross_entropy_reference(x, targets), [logits], 1e-5)


def test_equals_pytorch():
    logits, targets = leaf(40, 50), torch.randint(0, 50, (40,))
    torch.testing.assert_close(cross_entropy(logits, targets)[0].mean(), F.cross_entropy(logits, targets))


def test_equal_logits_cost_the_log_of_their_number():
    nll, log_z = cross_entropy(torch.full((3, 8), 1e4), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(nll, torch.full((3,), math.log(8)), rtol=0, atol=1e-3)
    torch.testing.assert_close(log_z, torch.full((3,), 1e4 + math.log(8)))


def test_either_output_alone_can_be_differentiated():
    logits, targets = leaf(6, 9), torch.randint(0, 9, (6,))
    for index in range(2):
        actual = torch.autograd.grad(cross_entropy(logits, targets)[index].sum(), logits)
        expected = torch.autograd.grad(cross_entropy_reference(logits, targets)[index].sum(), logits)
        torch.testing.assert_close(actual, expected)


def test_bfloat16_logits_give_a_float32_loss():
    logits, targets = leaf(3, 20, 300, dtype=torch.bfloat16), torch.randint(0, 300, (3, 20))
    assert cross_entropy(logits, targets)[0].dtype == torch.float32
    assert_matches(lambda x: cross_entropy(x, targets), lambda x: cross_entropy_reference(x, targets), [logits], 8e-3)


def test_gradients_in_float64():
    targets = torch.randint(0, 7, (2, 3))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), leaf(2, 3, 7, dtype=torch.float64))


def test_vmap():
    assert_vmaps(cross_entropy, [leaf(2, 5, 11), torch.randint(0, 11, (2, 5))])
