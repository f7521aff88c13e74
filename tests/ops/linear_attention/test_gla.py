import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.cuts import binary_chunks
from hybridtron.ops.flops import gla_flops
from hybridtron.ops.linear_attention.gla import gla, gla_reference, gla_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, token_major


def arguments(seq_len, heads=3, dtype=torch.float32, batch=2, key_dim=6, head_dim=8, strength=1.0):
    """q, k, v, g."""
    q, k = (token_major(batch, seq_len, heads, key_dim, dtype=dtype) for _ in range(2))
    decays = F.logsigmoid(torch.randn(batch, seq_len, heads, key_dim)) * strength
    return q, k, token_major(batch, seq_len, heads, head_dim, dtype=dtype), decays.requires_grad_()


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len):
    assert_matches(lambda *t: gla(*t, 64), gla_reference, arguments(seq_len), 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 16, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    assert_matches(lambda *t: gla(*t, chunk_size), gla_reference, arguments(70), 3e-5)


@pytest.mark.parametrize("strength", [1e-3, 1e3])
def test_decays_that_hardly_decay_and_that_underflow(strength):
    """At 1e3, exp(-c) of a whole chunk would be infinite."""
    assert_matches(lambda *t: gla(*t, 64), gla_reference, arguments(130, strength=strength), 3e-5)


def test_few_strong_decays_leave_the_others_exact():
    q, k, v, g = arguments(512)
    strong = torch.rand(g.shape) < 0.1
    g = torch.where(strong, -5e4, g.detach() / 50).requires_grad_()
    assert_matches(lambda *t: gla(*t, 64), gla_reference, (q, k, v, g), 1e-4)


def test_one_decay_for_all_channels_is_a_state_space_of_mamba2():
    from hybridtron.ops.ssm.ssd import ssd_reference

    q, k, v, g = (tensor.detach() for tensor in arguments(40))
    shared = g[..., :1]
    expected, _ = ssd_reference(v, torch.ones(2, 40, 3), torch.zeros(3), k, q)
    torch.testing.assert_close(gla(q, k, v, torch.zeros_like(g), 16).double(), expected, rtol=1e-4, atol=1e-4)
    steps, ones = -shared.squeeze(-1), -torch.ones(3)
    expected, _ = ssd_reference(v / steps.unsqueeze(-1), steps, ones, k, q)
    torch.testing.assert_close(gla(q, k, v, shared.expand_as(g), 16).double(), expected, rtol=1e-4, atol=1e-4)


def test_causal():
    q, k, v, g = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: gla(t[..., :6], t[..., 6:12], v + t.sum(-1, keepdim=True), g, 64), torch.cat([q, k], -1))


def test_steps_reproduce_the_sequence():
    q, k, v, g = (tensor.detach() for tensor in arguments(70))
    state, outputs = torch.zeros(2, 3, 6, 8), []
    for t in range(70):
        y, state = gla_step(state, q[:, t], k[:, t], v[:, t], g[:, t])
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), gla(q, k, v, g, 16), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len):
    inputs = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: gla(*inputs, 64))
    assert forward == gla_flops(seq_len, 3, 6, 8, 64)
    assert backward == 2 * forward


def test_chunks_are_even_powers_of_two():
    assert [binary_chunks(s, 64) for s in (1, 7, 63, 64, 65, 300)] == [
        (1, 1),
        (1, 8),
        (1, 64),
        (1, 64),
        (2, 64),
        (5, 64),
    ]


def test_bfloat16():
    assert_matches(lambda *t: gla(*t, 64), gla_reference, arguments(300, dtype=torch.bfloat16), 1e-2)


def test_gradients_in_float64():
    inputs = [tensor.detach().double().requires_grad_() for tensor in arguments(11, 2, batch=1, key_dim=2, head_dim=2)]
    assert torch.autograd.gradcheck(lambda *t: gla(*t, 4), inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    assert_vmaps(lambda q, k, v, g: gla(q, k, v, -F.softplus(g), 8), arguments(seq_len))
