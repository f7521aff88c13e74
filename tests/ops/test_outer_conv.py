import pytest
import torch

from hybridtron.ops.outer_conv import by_fft, by_pairs, outer_conv, outer_conv_flops, outer_conv_reference
from tests.ops.compare import assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major

LENGTHS = (1, 7, 63, 64, 65)


def arguments(seq_len, dtype=torch.float32):
    return (*(token_major(2, seq_len, 3, 4, dtype=dtype) for _ in range(3)), leaf(3, seq_len, dtype=dtype))


@pytest.mark.parametrize("form", [by_pairs, by_fft])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_either_form_matches_the_sum(seq_len, form):
    assert_matches(form, outer_conv_reference, arguments(seq_len), 1e-5)


@pytest.mark.parametrize("seq_len", [20, 1000])
def test_long_sequences_too(seq_len):
    """At a width of two, sequences are short up to 20 tokens."""
    q, k, v, h = leaf(1, seq_len, 1, 2), leaf(1, seq_len, 1, 2), leaf(1, seq_len, 1, 2), leaf(1, seq_len)
    assert_matches(outer_conv, outer_conv_reference, (q, k, v, h), 1e-5)
    forward, _ = count_flops(lambda: outer_conv(q, k, v, h))
    assert (forward > 0) == (seq_len == 20)


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_causal(form):
    x, h = torch.randn(1, 60, 2, 4), torch.randn(2, 60)
    assert_causal(lambda t: form(t, t, t, h) / 100, x)


def test_flops_are_those_executed():
    q, k, v, h = leaf(1, 64, 3, 4), leaf(1, 64, 3, 4), leaf(1, 64, 3, 4), leaf(3, 64)
    forward, backward = count_flops(lambda: outer_conv(q, k, v, h))
    assert (forward, 0) == outer_conv_flops(64, 3, 4)
    assert backward == 2 * forward


def test_cost_per_token_of_long_sequences_grows_with_the_logarithm_of_their_length():
    per_token = [sum(outer_conv_flops(length, 2, 4)) / length for length in (2048, 8192, 32768)]
    assert per_token[2] - per_token[1] < 1.05 * (per_token[1] - per_token[0])


def test_bfloat16():
    assert_matches(outer_conv, outer_conv_reference, arguments(64, torch.bfloat16), 1.6e-2)


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_gradients_in_float64(form):
    inputs = [*(leaf(1, 5, 2, 3, dtype=torch.float64) for _ in range(3)), leaf(2, 5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(form, inputs)


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_vmap(form):
    assert_vmaps(form, (*(leaf(2, 9, 2, 3) for _ in range(3)), leaf(2, 9)))
