import pytest
import torch

from hybridtron.ops.flops import linear_attention_flops
from hybridtron.ops.linear_attention.kernelized import (
    elu_features,
    linear_attention,
    linear_attention_reference,
    linear_attention_step,
    taylor_features,
)
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, token_major


def arguments(seq_len, heads=3, dtype=torch.float32, batch=2, features=6, head_dim=8):
    """q, k, v, with positive features."""
    q, k = (token_major(batch, seq_len, heads, features, dtype=dtype).detach().abs() for _ in range(2))
    return q.requires_grad_(), k.requires_grad_(), token_major(batch, seq_len, heads, head_dim, dtype=dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len, normalize):
    def reference(*t):
        return linear_attention_reference(*t, normalize)

    assert_matches(lambda *t: linear_attention(*t, 64, normalize), reference, arguments(seq_len), 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    def reference(*t):
        return linear_attention_reference(*t, True)

    assert_matches(lambda *t: linear_attention(*t, chunk_size, True), reference, arguments(70), 3e-5)


def test_normalised_weights_sum_to_one():
    q, k, v = arguments(70)
    torch.testing.assert_close(linear_attention(q, k, torch.ones_like(v), 16, True), torch.ones_like(v))


def test_taylor_features_are_the_expansion_of_softmax():
    """With small scores they give what softmax attention gives."""
    from hybridtron.ops.attention.softmax import attention_reference

    q, k, v = (token_major(2, 40, 3, 8).detach() for _ in range(3))
    scores = (taylor_features(q).unsqueeze(1) * taylor_features(k).unsqueeze(2)).sum(-1)
    products = (q.unsqueeze(1) * k.unsqueeze(2)).sum(-1) / 8**0.5
    torch.testing.assert_close(scores, 1 + products + products**2 / 2, rtol=1e-4, atol=1e-4)
    small = 0.2 * q
    y = linear_attention(taylor_features(small), taylor_features(0.2 * k), v, 16, True)
    torch.testing.assert_close(y.double(), attention_reference(small, 0.2 * k, v), rtol=0, atol=1e-3)


def test_elu_features_are_positive():
    x = torch.tensor([-20.0, -1.0, 0.0, 2.0])
    torch.testing.assert_close(elu_features(x), torch.tensor([0.0, torch.e**-1, 1.0, 3.0]))


def test_causal():
    q, k, v = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: linear_attention(q, k + t.mean(-1, keepdim=True).abs(), t, 64, True), v)


@pytest.mark.parametrize("normalize", [True, False])
def test_steps_reproduce_the_sequence(normalize):
    q, k, v = (tensor.detach() for tensor in arguments(70))
    state, outputs = torch.zeros(2, 3, 6, 8 + normalize), []
    for t in range(70):
        y, state = linear_attention_step(state, q[:, t], k[:, t], v[:, t], normalize)
        outputs.append(y)
    whole = linear_attention(q, k, v, 16, normalize)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seq_len", [1, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len, normalize):
    inputs = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: linear_attention(*inputs, 64, normalize))
    assert forward == linear_attention_flops(seq_len, 3, 6, 8, 64, normalize)
    assert backward == 2 * forward


def test_bfloat16():
    def reference(*t):
        return linear_attention_reference(*t, True)

    inputs = arguments(300, dtype=torch.bfloat16)
    assert_matches(lambda *t: linear_attention(*t, 64, True), reference, inputs, 1e-2)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    def op(q, k, v):
        return linear_attention(elu_features(q), elu_features(k), v, 7, True)

    assert_vmaps(op, arguments(seq_len))
