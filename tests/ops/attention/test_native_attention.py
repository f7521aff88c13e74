"""The kernel that keeps no scores; widths that it does not take go by blocks, which other tests hold to the formula."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hybridtron.ops.attention.native_attention import NativeAttention, takes_native_attention
from hybridtron.ops.attention.softmax import attention, attention_reference
from hybridtron.ops.flops import attention_flops
from tests.ops.compare import (
    assert_matches,
    assert_same_on_any_number_of_threads,
    count_flops,
    leaf,
    saved_bytes,
    token_major,
)

pytestmark = pytest.mark.usefixtures("native")


def arguments(num_queries, num_keys, heads=4, kv=2, width=32, channels=64, dtype=torch.float32):
    """q, k, v, sinks."""
    q = token_major(2, num_keys, heads, width, dtype=dtype)[:, -num_queries:]
    k, v = (token_major(2, num_keys, kv, size, dtype=dtype) for size in (width, channels))
    return q, k, v, leaf(heads)


def native(q, k, v, sinks=None, softcap=0.0, scale=0.3):
    assert takes_native_attention(None, q, k, v)
    return NativeAttention.apply(q, k, v, scale, sinks, softcap)


def reference(q, k, v, sinks=None, softcap=0.0, scale=0.3):
    return attention_reference(q, k, v, None, scale, sinks, softcap or None)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("num_queries", "num_keys"),
    [(7, 7), (31, 31), (64, 64), (65, 65), (1000, 1000), (1, 77), (70, 190), (513, 1100)],
)
def test_matches_the_full_square(num_queries, num_keys, sinks, softcap):
    inputs = arguments(num_queries, num_keys)[: 3 + sinks]
    assert_matches(lambda *t: native(*t, softcap=softcap), lambda *t: reference(*t, softcap=softcap), inputs, 3e-5)


def test_a_token_alone_sees_its_own_value():
    q, k, v, _ = arguments(1, 1)
    torch.testing.assert_close(native(q, k, v), v.repeat_interleave(2, 2))


@pytest.mark.parametrize(
    ("heads", "kv", "width", "channels"), [(4, 4, 32, 32), (3, 1, 5, 96), (8, 2, 64, 64), (4, 2, 96, 32)]
)
def test_heads_of_any_shape(heads, kv, width, channels):
    assert_matches(native, reference, arguments(150, 150, heads, kv, width, channels), 3e-5)


@pytest.mark.parametrize(("width", "channels"), [(32, 32), (24, 32), (40, 64), (32, 544)])
def test_gradients_of_any_widths_when_it_is_recomputed(width, channels):
    q, k, v, _ = arguments(70, 70, width=width, channels=channels)
    results = [native(q, k, v), checkpoint(native, q, k, v, use_reentrant=False)]
    plain, recomputed = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in results)
    assert all(map(torch.equal, plain, recomputed))


def test_bfloat16():
    assert_matches(native, reference, arguments(150, 150, dtype=torch.bfloat16), 1.6e-2)


def test_results_do_not_depend_on_the_number_of_threads():
    assert_same_on_any_number_of_threads(native, arguments(300, 300))


def test_is_taken_where_its_widths_fit_and_no_window_hides_keys(monkeypatch):
    calls = []
    monkeypatch.setattr(NativeAttention, "apply", lambda *t: calls.append(t) or t[2].repeat_interleave(2, 2))
    inputs = arguments(70, 70)[:3]
    attention(*inputs)
    attention(*inputs, window=70)
    assert len(calls) == 2
    attention(*inputs, window=9)
    attention(*inputs[:2], inputs[2][..., :40])
    assert len(calls) == 2


def test_flops_are_counted_by_products_that_pytorch_sees():
    q, k, v = leaf(1, 300, 4, 32), leaf(1, 300, 2, 32), leaf(1, 300, 2, 32)
    forward, backward = count_flops(lambda: attention(q, k, v))
    assert forward == attention_flops(300, 4, 32)
    assert backward == 2 * forward


def test_keeps_for_backward_what_grows_with_the_length():
    q, k, v, _ = arguments(2048, 2048, heads=1, kv=1, width=32, channels=32)
    inputs = q.numel() + k.numel() + v.numel()
    assert saved_bytes(lambda: native(q, k, v)) < 4 * 20 * inputs
