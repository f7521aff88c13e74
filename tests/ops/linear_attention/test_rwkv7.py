import math

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.flops import rwkv7_flops
from hybridtron.ops.linear_attention.rwkv7 import rwkv7, rwkv7_prefill, rwkv7_reference, rwkv7_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, token_major

STRONGEST = -math.exp(-0.5)  # log of RWKV-7's smallest decay


def arguments(seq_len, heads=3, dtype=torch.float32, batch=2, key_dim=6, head_dim=8, share=None):
    """q, g, k, v, a, b, with a of length one and b = -a times a rate in (0, 1); all decays are `share` of the
    strongest, by default random ones."""
    q, k, a = (token_major(batch, seq_len, heads, key_dim, dtype=dtype) for _ in range(3))
    a = F.normalize(a.detach(), dim=-1)
    b = -a * torch.rand(batch, seq_len, heads, key_dim, dtype=dtype)
    g = torch.rand(batch, seq_len, heads, key_dim) if share is None else torch.full(k.shape, share)
    v = token_major(batch, seq_len, heads, head_dim, dtype=dtype)
    return q, (STRONGEST * g).requires_grad_(), k, v, a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len):
    assert_matches(lambda *t: rwkv7(*t, 64), rwkv7_reference, arguments(seq_len), 1e-4)


@pytest.mark.parametrize("chunk_size", [1, 2, 16])
def test_the_chunk_size_changes_no_result(chunk_size):
    assert_matches(lambda *t: rwkv7(*t, chunk_size), rwkv7_reference, arguments(70), 3e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_decay_and_the_strongest_decay_of_every_token(share):
    """At 1.0 the state fades by exp(-39) in a chunk of 64."""
    assert_matches(lambda *t: rwkv7(*t, 64), rwkv7_reference, arguments(200, share=share), 1e-4)


def test_without_decay_and_with_full_rates_a_key_recalls_what_it_was_last_given():
    keys = torch.eye(4).repeat(3, 1)[None, :, None]  # [1, 12, 1, 4]: each of four keys three times
    values = torch.randn(1, 12, 1, 5)
    recalled = rwkv7(keys, torch.zeros_like(keys), keys, values, -keys, keys, 8)
    torch.testing.assert_close(recalled, values)


def test_causal():
    q, g, k, v, a, b = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: rwkv7(q + t[..., :6], g, k + t[..., :6], t, a, b, 64), v)


def test_steps_and_prefill_reproduce_the_sequence():
    inputs = [tensor.detach() for tensor in arguments(150)]
    whole = rwkv7(*inputs, 16)
    state, outputs = torch.zeros(2, 3, 6, 8), []
    for t in range(150):
        y, state = rwkv7_step(state, *(tensor[:, t] for tensor in inputs))
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-4, atol=1e-5)
    read, outputs = torch.zeros(2, 3, 6, 8), []
    for piece in zip(*(tensor.split([1, 60, 89], 1) for tensor in inputs), strict=True):
        y, read = rwkv7_prefill(read, *piece, 16)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len):
    inputs = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: rwkv7(*inputs, 64))
    assert forward == rwkv7_flops(seq_len, 3, 6, 8, 64)
    assert backward == 2 * forward


def test_bfloat16():
    assert_matches(lambda *t: rwkv7(*t, 64), rwkv7_reference, arguments(300, dtype=torch.bfloat16), 1e-2)


def test_gradients_in_float64():
    inputs = [t.detach().double().requires_grad_() for t in arguments(11, 2, batch=1, key_dim=2, head_dim=2)]
    assert torch.autograd.gradcheck(lambda *t: rwkv7(*t, 4), inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    def op(q, g, k, v, a, b):
        a = F.normalize(a, dim=-1)
        return rwkv7(q, STRONGEST * g.sigmoid(), k, v, a, -a * b.sigmoid(), 8)

    assert_vmaps(op, arguments(seq_len))
