import pytest
import torch

from hybridtron.ops.flops import gla_flops
from hybridtron.ops.linear_attention.rwkv6 import rwkv6, rwkv6_reference, rwkv6_step
from tests.ops.compare import assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major

LENGTHS = (1, 7, 31, 32, 33, 1000)


def arguments(seq_len, spread=1.0, dtype=torch.float32, batch=2, heads=3):
    """r, k, v, log_w, u; log decays are -exp of a normal draw of so much spread."""
    log_w = -(spread * torch.randn(batch, seq_len, heads, 5)).exp()
    return (
        token_major(batch, seq_len, heads, 5, dtype=dtype),
        token_major(batch, seq_len, heads, 5, dtype=dtype),
        token_major(batch, seq_len, heads, 6, dtype=dtype),
        log_w.requires_grad_(),
        leaf(heads, 5),
    )


def scanned(r, k, v, log_w, u, chunk_size=32):
    return rwkv6(r, k, v, log_w, u, chunk_size) + 0 * log_w.sum()  # one token has no use for its decay


def reference(r, k, v, log_w, u):
    return rwkv6_reference(r, k, v, log_w, u)[0] + 0 * log_w.sum()


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len):
    assert_matches(scanned, reference, arguments(seq_len), 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_the_chunk_size_changes_no_result(chunk_size):
    assert_matches(lambda *t: scanned(*t, chunk_size), reference, arguments(70), 3e-5)


@pytest.mark.parametrize("spread", [4.0, 8.0])
def test_decays_from_none_to_all(spread):
    """Log decays down to -exp(30): the state is gone, and what comes next is as exact as ever."""
    assert_matches(scanned, reference, arguments(300, spread), 1e-3)


def test_causal():
    x, *rest = (tensor.detach() for tensor in arguments(100))
    assert_causal(lambda t: rwkv6(t, t, *rest[1:], 32), x)


def test_steps_reproduce_the_sequence():
    r, k, v, log_w, u = (tensor.detach() for tensor in arguments(70))
    state, outputs = torch.zeros(2, 3, 5, 6), []
    for t in range(70):
        y, state = rwkv6_step(state, r[:, t], k[:, t], v[:, t], log_w[:, t], u)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), rwkv6(r, k, v, log_w, u, 16), rtol=1e-4, atol=1e-4)


def test_the_reference_continues_from_a_state():
    inputs = [tensor.detach() for tensor in arguments(20)]
    whole, final = rwkv6_reference(*inputs)
    _, state = rwkv6_reference(*(t[:, :12] for t in inputs[:4]), inputs[4])
    rest, end = rwkv6_reference(*(t[:, 12:] for t in inputs[:4]), inputs[4], state)
    torch.testing.assert_close(rest, whole[:, 12:])
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("seq_len", [1, 7, 32, 64, 300])
def test_flops_are_those_executed(seq_len):
    forward, backward = count_flops(lambda: scanned(*arguments(seq_len, batch=1)))
    assert forward == gla_flops(seq_len, 3, 5, 6, 32)
    assert backward == 2 * forward


def test_bfloat16():
    assert_matches(scanned, reference, arguments(300, dtype=torch.bfloat16), 1.6e-2)


def test_gradients_in_float64():
    inputs = [tensor.detach().double().requires_grad_() for tensor in arguments(7, batch=1, heads=2)]
    assert torch.autograd.gradcheck(lambda *t: scanned(*t, 4), inputs)


def test_vmap():
    assert_vmaps(lambda r, k, v, w, u: scanned(r, k, v, -w.exp(), u, 8), arguments(20))
