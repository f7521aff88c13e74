import pytest
import torch

from hybridtron.ops.attention import query_blocks
from hybridtron.ops.attention import softmax as module
from hybridtron.ops.attention.softmax import attention, attention_reference
from hybridtron.ops.flops import attention_flops
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major

pytestmark = pytest.mark.usefixtures("form")

HEADS = [(4, 4), (4, 2), (3, 1)]
WINDOWS = [None, 1, 5, 64, 100]


def projections(num_queries, num_keys, heads, kv, dtype=torch.float32):
    return (
        token_major(2, num_queries, heads, 8, dtype=dtype),
        token_major(2, num_keys, kv, 8, dtype=dtype),
        token_major(2, num_keys, kv, 6, dtype=dtype),
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv"), HEADS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_full_square(seq_len, heads, kv, window):
    inputs = projections(seq_len, seq_len, heads, kv)
    assert_matches(lambda *t: attention(*t, window), lambda *t: attention_reference(*t, window), inputs, 1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 77), (70, 90)])
def test_fewer_queries_than_keys_are_the_last_ones(num_queries, num_keys, window):
    inputs = projections(num_queries, num_keys, 4, 2)
    assert_matches(lambda *t: attention(*t, window), lambda *t: attention_reference(*t, window), inputs, 1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_probabilities_too_many_to_keep_are_computed_again(monkeypatch, window):
    monkeypatch.setattr(query_blocks, "_KEPT_PROBABILITIES", 0)
    inputs = projections(130, 130, 4, 2)
    assert_matches(lambda *t: attention(*t, window), lambda *t: attention_reference(*t, window), inputs, 1e-5)


@pytest.mark.parametrize("form", [module._plain_attention, module._fused_attention])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(65, 65), (3, 90), (300, 300)])
def test_other_forms_give_the_same(form, num_queries, num_keys, window):
    inputs = projections(num_queries, num_keys, 4, 2)
    scale = 8**-0.5
    assert_matches(
        lambda *t: form(*t, window, scale, None), lambda *t: attention_reference(*t, window, scale), inputs, 1e-5
    )


@pytest.mark.parametrize("window", [None, 3])
def test_causal(window):
    assert_causal(lambda x: attention(x, x, x, window), torch.randn(1, 150, 2, 8))


def test_a_window_hides_what_lies_before_it():
    x = torch.randn(1, 150, 1, 8)
    changed = x.clone()
    changed[:, 49] += 1
    before, after = (attention(t, t, t, window=10) for t in (x, changed))
    torch.testing.assert_close(before[:, 59:], after[:, 59:])
    assert not torch.allclose(before[:, 58], after[:, 58])


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_scale(scale):
    inputs = projections(70, 70, 4, 2)
    assert_matches(lambda *t: attention(*t, scale=scale), lambda *t: attention_reference(*t, scale=scale), inputs, 1e-5)


def test_output_lies_in_memory_as_the_values_do():
    shape = (2, 9, 4, 8)
    token_first = torch.randn(9, 2, 4, 8).transpose(0, 1)
    assert attention(token_first, token_first, token_first).transpose(0, 1).is_contiguous()
    sequence_first = torch.randn(*shape)
    assert attention(sequence_first, sequence_first, sequence_first).is_contiguous()


@pytest.mark.parametrize("form", ["attention", "plain"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_flops_are_those_executed(seq_len, window, form):
    q, k, v = leaf(1, seq_len, 4, 8), leaf(1, seq_len, 2, 8), leaf(1, seq_len, 2, 8)
    op = attention if form == "attention" else lambda *t: module._plain_attention(*t, 1.0, None)
    forward, backward = count_flops(lambda: op(q, k, v, window))
    assert forward == attention_flops(seq_len, 4, 8, window)
    assert backward == 2 * forward


def test_windowed_flops_grow_linearly():
    assert attention_flops(8192, 4, 8, 256) - attention_flops(4096, 4, 8, 256) == pytest.approx(
        attention_flops(4096, 4, 8, 256), rel=0.05
    )


def test_bfloat16():
    inputs = projections(150, 150, 4, 2, dtype=torch.bfloat16)
    assert_matches(attention, attention_reference, inputs, 1.6e-2)


def test_gradients_in_float64():
    inputs = [leaf(1, 5, heads, 4, dtype=torch.float64) for heads in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda *t: attention(*t, 3), inputs)


@pytest.mark.parametrize("window", [None, 3])
def test_vmap(window):
    assert_vmaps(lambda *t: attention(*t, window), (leaf(2, 70, 4, 8), leaf(2, 70, 2, 8), leaf(2, 70, 2, 8)))
