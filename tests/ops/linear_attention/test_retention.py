import pytest
import torch

from hybridtron.ops.flops import linear_attention_flops
from hybridtron.ops.linear_attention.gla import gla_reference
from hybridtron.ops.linear_attention.retention import retention, retention_prefill, retention_reference, retention_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, token_major

DECAYS = torch.tensor([-1e-6, -0.03, -0.7])


def arguments(seq_len, dtype=torch.float32, batch=2, key_dim=6, head_dim=8):
    """q, k, v."""
    return [token_major(batch, seq_len, 3, width, dtype=dtype) for width in (key_dim, key_dim, head_dim)]


def matches(inputs, decays, chunk_size, tolerance=3e-5):
    ours = lambda *t: retention(*t, decays, chunk_size)  # noqa: E731
    assert_matches(ours, lambda *t: retention_reference(*t, decays), inputs, tolerance)


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len):
    matches(arguments(seq_len), DECAYS, 64)


@pytest.mark.parametrize("chunk_size", [1, 2, 24, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    matches(arguments(70), DECAYS, chunk_size)


@pytest.mark.parametrize("decays", [[0.0, 0.0, 0.0], [-50.0, -1e4, 0.0]])
def test_decays_that_keep_all_and_that_underflow(decays):
    matches(arguments(130), torch.tensor(decays), 64)


def test_is_gated_linear_attention_with_a_constant_gate():
    q, k, v = (tensor.detach().double() for tensor in arguments(40))
    gates = DECAYS.double().view(1, 1, 3, 1).expand_as(q)
    torch.testing.assert_close(retention(q, k, v, DECAYS.double(), 16), gla_reference(q, k, v, gates))


def test_causal():
    q, k, v = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: retention(q + t[..., :6], k, t, DECAYS, 64), v)


def test_steps_and_prefill_reproduce_the_sequence():
    q, k, v = (tensor.detach() for tensor in arguments(150))
    whole = retention(q, k, v, DECAYS, 16)
    state, outputs = torch.zeros(2, 3, 6, 8), []
    for t in range(150):
        y, state = retention_step(state, q[:, t], k[:, t], v[:, t], DECAYS)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-4, atol=1e-4)
    read, outputs = torch.zeros(2, 3, 6, 8), []
    for piece in zip(*(t.split([1, 60, 89], 1) for t in (q, k, v)), strict=True):
        y, read = retention_prefill(read, *piece, DECAYS, 16)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len):
    inputs = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: retention(*inputs, DECAYS, 64))
    assert forward == linear_attention_flops(seq_len, 3, 6, 8, 64, normalize=False)
    assert backward == 2 * forward


def test_bfloat16():
    matches(arguments(300, torch.bfloat16), DECAYS, 64, 1e-2)


def test_gradients_in_float64():
    inputs = [t.detach().double().requires_grad_() for t in arguments(11, batch=1, key_dim=2, head_dim=2)]
    assert torch.autograd.gradcheck(lambda *t: retention(*t, DECAYS.double(), 4), inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    assert_vmaps(lambda q, k, v: retention(q, k, v, DECAYS, 8), arguments(seq_len))
