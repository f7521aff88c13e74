"""Kernels of gated linear attention against the recurrence, in Triton's interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.linear_attention.gla import gla_reference
from hybridtron.ops.triton.gla import gla
from tests.ops.compare import assert_matches
from tests.ops.triton.tensors import leaf, token_major


def arguments(tokens, key_dim=16, head_dim=32, strength=1.0, dtype=torch.float32, batch=1, heads=2):
    q, k = (token_major(batch, tokens, heads, key_dim, dtype=dtype) for _ in range(2))
    g = F.logsigmoid(leaf(batch, tokens, heads, key_dim).detach()) * strength
    return q, k, token_major(batch, tokens, heads, head_dim, dtype=dtype), g.requires_grad_()


def op(*tensors):
    return gla(*tensors, 64)


# in one chunk, and in several with channels that fill no block
@pytest.mark.parametrize(("tokens", "key_dim", "head_dim"), [(1, 16, 16), (7, 16, 32), (65, 32, 16), (130, 20, 24)])
def test_matches_the_recurrence(tokens, key_dim, head_dim):
    inputs = arguments(tokens, key_dim, head_dim, batch=2 if tokens < 65 else 1, heads=2 if tokens <= 65 else 1)
    assert_matches(op, gla_reference, inputs, 3e-5)


@pytest.mark.parametrize("strength", [1e-3, 1e3])
def test_decays_that_hardly_decay_and_that_underflow(strength):
    """At 1e3, exp(-c) of a whole chunk would be infinite."""
    assert_matches(op, gla_reference, arguments(33, 4, 4, strength, heads=1), 3e-5)


def test_few_strong_decays_leave_the_others_exact():
    q, k, v, g = arguments(70, 4, 4, heads=1)
    strong = torch.rand(g.shape, device=g.device) < 0.1
    g = torch.where(strong, -5e4, g.detach() / 50).requires_grad_()
    assert_matches(op, gla_reference, (q, k, v, g), 1e-4)


def test_bfloat16():
    assert_matches(op, gla_reference, arguments(33, 8, 8, dtype=torch.bfloat16, heads=1), 1e-2)


def test_blocks_of_channels_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("hybridtron.ops.triton.gla._BLOCK", 16)
    assert_matches(op, gla_reference, arguments(20, 24, 40, heads=1), 3e-5)
