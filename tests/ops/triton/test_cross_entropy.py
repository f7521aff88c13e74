"""Kernels of the cross entropy against its formula, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from hybridtron.ops.elementwise.cross_entropy import cross_entropy_reference
from hybridtron.ops.triton import cross_entropy as module
from hybridtron.ops.triton.cross_entropy import cross_entropy, linear_cross_entropy
from tests.ops.compare import assert_matches, saved_bytes
from tests.ops.triton.tensors import DEVICE, leaf, token_major


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few words, so that a vocabulary takes several, and several loads of a program."""
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 1)
    monkeypatch.setattr(module, "_BLOCK_MULTIPLE", 8)
    monkeypatch.setattr(module, "_COLUMNS", 4)


def targets_of(vocabulary, *shape):
    targets = torch.randint(vocabulary, shape, device=DEVICE)
    targets.view(-1)[0] = vocabulary - 1
    return targets


def of_projection(x, weight, targets):
    return cross_entropy_reference(x @ weight.t(), targets)


@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (7, 65)])
def test_given_logits(tokens, vocabulary):
    targets = targets_of(vocabulary, 2, tokens)
    inputs = [token_major(2, tokens, vocabulary)]
    assert_matches(lambda x: cross_entropy(x, targets), lambda x: cross_entropy_reference(x, targets), inputs, 1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (7, 21)])
def test_projection_in_blocks_of_the_vocabulary(tokens, vocabulary):
    targets, inputs = targets_of(vocabulary, 2, tokens), (token_major(2, tokens, 6), leaf(vocabulary, 6))
    assert_matches(lambda *t: linear_cross_entropy(*t, targets), lambda *t: of_projection(*t, targets), inputs, 1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_bfloat16():
    """Logits and their gradients are rounded, as without the kernels: a unit in the last place of a logit of 8 is 2^-5,
    by which its probability is off."""
    x, weight = leaf(5, 8, dtype=torch.bfloat16), leaf(21, 8, dtype=torch.bfloat16)
    targets = targets_of(21, 5)
    assert_matches(
        lambda *t: linear_cross_entropy(*t, targets), lambda *t: of_projection(*t, targets), (x, weight), 4e-2
    )


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e38, 0.0, -1e38], [-1e38, -1e38, -1e38]], device=DEVICE)
    nll, log_z = cross_entropy(logits, torch.tensor([0, 2], device=DEVICE))
    assert nll.isfinite().all()
    torch.testing.assert_close(log_z, torch.logsumexp(logits, -1))


def test_the_logits_are_not_kept():
    """But for one block, which is not among the saved tensors."""
    x, weight = leaf(64, 4), leaf(1000, 4)
    kept = saved_bytes(lambda: linear_cross_entropy(x, weight, targets_of(1000, 64))[0])
    assert kept == 4 * (x.numel() + weight.numel() + 64) + 8 * 64


@pytest.mark.usefixtures("small_blocks")
def test_one_block_of_logits_is_kept_until_backward():
    x, weight = leaf(5, 6), leaf(21, 6)
    nll, _ = linear_cross_entropy(x, weight, targets_of(21, 5))
    assert nll.grad_fn.last_logits.shape == (5, 21 % 8)
    nll.sum().backward()
    assert nll.grad_fn.last_logits is None


@pytest.mark.usefixtures("small_blocks")
def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    x, weight = leaf(5, 6), leaf(21, 6)
    loss = linear_cross_entropy(x, weight, targets_of(21, 5))[0].sum()
    first, second = (torch.autograd.grad(loss, (x, weight), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
