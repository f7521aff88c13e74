import pytest
import torch

from hybridtron.ops.attention import query_blocks
from hybridtron.ops.attention.softmax import _fused_attention, _plain_attention, attention, attention_reference
from hybridtron.ops.flops import attention_flops
from tests.ops.compare import (
    LENGTHS,
    assert_causal,
    assert_matches,
    assert_vmaps,
    count_flops,
    leaf,
    saved_bytes,
    token_major,
)

pytestmark = pytest.mark.usefixtures("form")


def attention_with_sinks(q, k, v, sinks, window=None, scale=None, function=attention):
    return function(q, k, v, window, scale, sinks)


def attention_with_sinks_reference(q, k, v, sinks, window=None, scale=None):
    return attention_reference(q, k, v, window, scale, sinks)


def arguments(seq_len, heads=4, kv=2, dtype=torch.float32, batch=2, head_dim=8):
    """q, k, v, sinks."""
    q = token_major(batch, seq_len, heads, head_dim, dtype=dtype)
    k, v = (token_major(batch, seq_len, kv, head_dim, dtype=dtype) for _ in range(2))
    return q, k, v, leaf(heads)


@pytest.mark.parametrize("window", [None, 10, 100])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_a_softmax_with_one_more_column(seq_len, window):
    def op(*t):
        return attention_with_sinks(*t, window)

    def reference(*t):
        return attention_with_sinks_reference(*t, window)

    assert_matches(op, reference, arguments(seq_len), 3e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(130, 130), (70, 90), (1, 77)])
def test_probabilities_too_many_to_keep_are_computed_again(monkeypatch, num_queries, num_keys, window):
    monkeypatch.setattr(query_blocks, "_KEPT_PROBABILITIES", 0)
    q, k, v, sinks = arguments(num_keys)
    inputs = q[:, -num_queries:], k, v, sinks
    op, reference = attention_with_sinks, attention_with_sinks_reference
    assert_matches(lambda *t: op(*t, window), lambda *t: reference(*t, window), inputs, 1e-5)


@pytest.mark.parametrize("form", [_plain_attention, _fused_attention])
@pytest.mark.parametrize("window", [None, 1, 10, 100])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(65, 65), (3, 90), (300, 300)])
def test_other_forms_give_the_same(form, num_queries, num_keys, window):
    q, k, v, sinks = arguments(num_keys)
    inputs = q[:, -num_queries:], k, v, sinks
    op, reference = attention_with_sinks, attention_with_sinks_reference
    scale = 0.3
    assert_matches(lambda *t: op(*t, window, scale, form), lambda *t: reference(*t, window, scale), inputs, 1e-5)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_scale(scale):
    op, reference = attention_with_sinks, attention_with_sinks_reference
    assert_matches(lambda *t: op(*t, scale=scale), lambda *t: reference(*t, scale=scale), arguments(70), 1e-5)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("form", [attention, _fused_attention])
def test_keeps_for_backward_what_grows_with_the_length(form, window):
    """At 8192 tokens the scores of all pairs are more than three hundred times as many as the inputs."""
    q, k, v, sinks = arguments(8192, heads=1, kv=1, batch=1)
    inputs = q.numel() + k.numel() + v.numel()
    assert saved_bytes(lambda: form(q, k, v, window, 1.0, sinks)) < 4 * 20 * inputs


def test_gradients_in_float64():
    inputs = [*(leaf(1, 5, heads, 4, dtype=torch.float64) for heads in (2, 1, 1)), leaf(2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: attention_with_sinks(*t, 3), inputs)


def test_a_sink_far_below_all_scores_changes_nothing():
    q, k, v, sinks = arguments(70)
    without = attention_reference(q, k, v)
    torch.testing.assert_close(attention_with_sinks(q, k, v, sinks - 1e4).double(), without, rtol=1e-4, atol=1e-5)


def test_a_sink_far_above_all_scores_leaves_nothing():
    q, k, v, sinks = arguments(70)
    assert attention_with_sinks(q, k, v, sinks + 1e4).abs().max() == 0


def test_one_query_over_earlier_keys():
    q, k, v, sinks = (tensor.detach() for tensor in arguments(70))
    whole = attention_with_sinks(q, k, v, sinks)
    torch.testing.assert_close(attention_with_sinks(q[:, -1:], k, v, sinks), whole[:, -1:], rtol=1e-4, atol=1e-5)


def test_causal():
    q, k, v, sinks = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: attention_with_sinks(q, k + t, t, sinks), v)


@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("seq_len", [1, 64, 300])
def test_flops_are_those_executed(seq_len, window):
    inputs = arguments(seq_len, batch=1)
    forward, backward = count_flops(lambda: attention_with_sinks(*inputs, window))
    assert forward == attention_flops(seq_len, 4, 8, window)
    assert backward == 2 * forward


def test_bfloat16():
    inputs = arguments(300, dtype=torch.bfloat16)
    assert_matches(attention_with_sinks, attention_with_sinks_reference, inputs, 1e-2)


@pytest.mark.filterwarnings("error")
def test_vmap():
    assert_vmaps(lambda *t: attention_with_sinks(*t, 9), arguments(20))
