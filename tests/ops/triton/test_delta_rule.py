"""Kernels of the gated delta rule against the recurrence, in Triton's interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule_reference
from hybridtron.ops.triton.delta_rule import gated_delta_rule
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import leaf, token_major


def arguments(tokens, groups=1, heads=2, key_dim=16, head_dim=32, batch=1, largest=1.0, decay=1.0, dtype=torch.float32):
    """q, k, v, g, beta, with keys of length one and strengths up to `largest`."""
    q, k = (token_major(batch, tokens, groups, key_dim, dtype=dtype) for _ in range(2))
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    g = decay * F.logsigmoid(leaf(batch, tokens, heads).detach() + 3)
    beta = largest * leaf(batch, tokens, heads).detach().sigmoid()
    v = token_major(batch, tokens, heads, head_dim, dtype=dtype)
    return q, k, v, g.requires_grad_(), beta.requires_grad_()


def op(*tensors):
    return gated_delta_rule(*tensors, 64)


# in one chunk, and in several with channels that fill no block
@pytest.mark.parametrize(
    ("tokens", "groups", "heads", "key_dim", "head_dim"),
    [(1, 1, 1, 16, 16), (7, 2, 4, 16, 32), (65, 1, 1, 32, 16), (130, 1, 2, 20, 24)],
)
def test_matches_the_recurrence(tokens, groups, heads, key_dim, head_dim):
    inputs = arguments(tokens, groups, heads, key_dim, head_dim, batch=2 if tokens == 65 else 1)
    assert_matches(op, gated_delta_rule_reference, inputs, 3e-5)


def test_no_decay_and_decays_that_underflow():
    """A token keeps all of the state or nothing; exp(-c) of a whole chunk would be infinite."""
    q, k, v, g, beta = arguments(130, heads=1)
    g = (-1e4 * torch.randint(2, g.shape, device=g.device)).requires_grad_()
    assert_matches(op, gated_delta_rule_reference, (q, k, v, g, beta), 3e-5)


def test_strengths_up_to_two_with_keys_that_are_nearly_alike():
    """Where a triangular system is hardest to solve: every key corrects all the others."""
    q, k, v, g, beta = arguments(65, heads=1, largest=2.0, decay=0.0)
    k = F.normalize(k.detach() * 0.1 + 1, dim=-1).requires_grad_()
    assert_matches(op, gated_delta_rule_reference, (q, k, v, g, beta), 1e-4)


def test_bfloat16():
    assert_matches(op, gated_delta_rule_reference, arguments(33, dtype=torch.bfloat16), 1e-2)


def test_blocks_of_channels_join_without_a_seam(monkeypatch):
    for name in ("_KEY_BLOCK", "_VALUE_BLOCK"):
        monkeypatch.setattr(f"hybridtron.ops.triton.delta_rule.{name}", 16)
    assert_matches(op, gated_delta_rule_reference, arguments(33, heads=1, key_dim=24, head_dim=40), 3e-5)
