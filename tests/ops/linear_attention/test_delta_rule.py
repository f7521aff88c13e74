import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.flops import gated_delta_rule_flops
from hybridtron.ops.linear_attention.delta_rule import (
    gated_delta_rule,
    gated_delta_rule_reference,
    gated_delta_rule_step,
)
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, token_major

HEADS = [(1, 1), (2, 4), (3, 3)]


def arguments(seq_len, groups=2, heads=4, dtype=torch.float32, batch=2, key_dim=6, head_dim=8, largest=1.0, decay=1.0):
    """q, k, v, g, beta, with keys of length one and strengths up to `largest`."""
    q, k = (token_major(batch, seq_len, groups, key_dim, dtype=dtype) for _ in range(2))
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    g = decay * F.logsigmoid(torch.randn(batch, seq_len, heads) + 3)
    beta = largest * torch.rand(batch, seq_len, heads)
    return q, k, token_major(batch, seq_len, heads, head_dim, dtype=dtype), g.requires_grad_(), beta.requires_grad_()


@pytest.mark.parametrize(("groups", "heads"), HEADS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len, groups, heads):
    inputs = arguments(seq_len, groups, heads)
    assert_matches(lambda *t: gated_delta_rule(*t, 64), gated_delta_rule_reference, inputs, 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 16, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    assert_matches(lambda *t: gated_delta_rule(*t, chunk_size), gated_delta_rule_reference, arguments(70), 3e-5)


def test_no_decay_and_decays_that_underflow():
    """A token keeps all of the state or nothing; exp(-c) of a whole chunk would be infinite."""
    q, k, v, g, beta = arguments(130)
    g = (-1e4 * torch.randint(2, g.shape)).requires_grad_()
    assert_matches(lambda *t: gated_delta_rule(*t, 64), gated_delta_rule_reference, (q, k, v, g, beta), 3e-5)


def test_few_strong_decays_leave_the_others_exact():
    q, k, v, g, beta = arguments(512)
    strong = torch.rand(g.shape) < 0.1
    g = torch.where(strong, -5e4, g.detach() / 50).requires_grad_()
    assert_matches(lambda *t: gated_delta_rule(*t, 64), gated_delta_rule_reference, (q, k, v, g, beta), 1e-4)


def test_strengths_up_to_two_with_keys_that_are_nearly_alike():
    """Where a triangular system is hardest to solve: every key corrects all the others."""
    q, k, v, g, beta = arguments(130, largest=2.0, decay=0.0)
    k = F.normalize(k.detach() * 0.1 + 1, dim=-1).requires_grad_()
    assert_matches(lambda *t: gated_delta_rule(*t, 64), gated_delta_rule_reference, (q, k, v, g, beta), 1e-4)


def test_a_key_recalls_what_it_was_last_given():
    """With strength one and no decay, which a sum of outer products could not do."""
    keys = torch.eye(4).repeat(3, 1)[None, :, None]  # [1, 12, 1, 4]: each of four keys three times
    values = torch.randn(1, 12, 1, 5)
    recalled = gated_delta_rule(keys, keys, values, torch.zeros(1, 12, 1), torch.ones(1, 12, 1), 8)
    torch.testing.assert_close(recalled, values)


def test_causal():
    q, k, v, g, beta = (tensor.detach() for tensor in arguments(150, 4, 4))
    assert_causal(lambda t: gated_delta_rule(q, F.normalize(k + t.sum(-1, keepdim=True), dim=-1), t, g, beta, 64), v)


def test_steps_reproduce_the_sequence():
    q, k, v, g, beta = (tensor.detach() for tensor in arguments(70))
    state, outputs = torch.zeros(2, 4, 6, 8), []
    for t in range(70):
        y, state = gated_delta_rule_step(state, q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t])
        outputs.append(y)
    whole = gated_delta_rule(q, k, v, g, beta, 16)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("groups", "heads"), HEADS)
@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len, groups, heads):
    inputs = arguments(seq_len, groups, heads, batch=1)
    forward, backward = count_flops(lambda: gated_delta_rule(*inputs, 64))
    assert forward == gated_delta_rule_flops(seq_len, groups, heads, 6, 8, 64)
    assert backward == 2 * forward


def test_bfloat16():
    inputs = arguments(300, dtype=torch.bfloat16)
    assert_matches(lambda *t: gated_delta_rule(*t, 64), gated_delta_rule_reference, inputs, 1e-2)


def test_gradients_in_float64():
    inputs = [
        tensor.detach().double().requires_grad_() for tensor in arguments(7, 1, 2, batch=1, key_dim=2, head_dim=2)
    ]
    assert torch.autograd.gradcheck(lambda *t: gated_delta_rule(*t, 4), inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    def op(q, k, v, g, beta):
        return gated_delta_rule(q, F.normalize(k, dim=-1), v, -F.softplus(g), beta.sigmoid(), 8)

    assert_vmaps(op, arguments(seq_len))
