import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridtron.ops.conv import outer_conv_pairs
from hybridtron.ops.conv.outer_conv import by_fft, by_pairs, outer_conv, outer_conv_reference
from hybridtron.ops.flops import outer_conv_flops
from tests.ops.compare import (
    assert_causal,
    assert_matches,
    assert_vmaps,
    count_flops,
    leaf,
    saved_bytes,
    token_major,
)

LENGTHS = (1, 7, 127, 128, 129, 700)  # around the 128 queries of a tile, and more than its 512 keys


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.untyped_storage().nbytes() // output.element_size())
        return output


def arguments(seq_len, dtype=torch.float32):
    return (*(token_major(2, seq_len, 3, 4, dtype=dtype) for _ in range(3)), leaf(3, seq_len, dtype=dtype))


@pytest.mark.parametrize("form", [by_pairs, by_fft])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_either_form_matches_the_sum(seq_len, form):
    assert_matches(form, outer_conv_reference, arguments(seq_len), 1e-5)


@pytest.mark.parametrize("block_elements", [1, 1 << 15, 1 << 26])
@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_any_number_of_matrices_at_a_time_gives_the_same(monkeypatch, form, block_elements):
    monkeypatch.setattr("hybridtron.ops.elementwise.row_blocks.CPU_BLOCK_ELEMENTS", block_elements)
    assert_matches(form, outer_conv_reference, arguments(150), 1e-5)


def test_scores_too_many_to_keep_are_computed_again(monkeypatch):
    monkeypatch.setattr(outer_conv_pairs, "_KEPT_SCORES", 0)
    assert_matches(by_pairs, outer_conv_reference, arguments(300), 1e-5)


@pytest.mark.parametrize("seq_len", [24, 1000])
def test_long_sequences_go_through_transforms(seq_len):
    """At a width of two, sequences are short up to 24 tokens."""
    q, k, v, h = leaf(1, seq_len, 1, 2), leaf(1, seq_len, 1, 2), leaf(1, seq_len, 1, 2), leaf(1, seq_len)
    assert_matches(outer_conv, outer_conv_reference, (q, k, v, h), 1e-5)
    forward, _ = count_flops(lambda: outer_conv(q, k, v, h))
    assert (forward > 0) == (seq_len == 24)


def test_a_longer_filter_is_cut_off():
    q, k, v, h = leaf(1, 20, 2, 4), leaf(1, 20, 2, 4), leaf(1, 20, 2, 4), leaf(2, 30)
    torch.testing.assert_close(outer_conv(q, k, v, h), outer_conv(q, k, v, h[:, :20]))
    assert not torch.autograd.grad(outer_conv(q, k, v, h).sum(), h)[0][:, 20:].any()


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_causal(form):
    x, h = torch.randn(1, 200, 2, 4), torch.randn(2, 200)
    assert_causal(lambda t: form(t, t, t, h) / 1000, x)


def test_pairs_are_causal_to_the_last_bit():
    x, h = torch.randn(1, 700, 2, 4), torch.randn(2, 700)
    changed = torch.cat([x[:, :300], 1e6 * x[:, 300:]], 1)
    assert torch.equal(by_pairs(x, x, x, h)[:, :300], by_pairs(changed, changed, changed, h)[:, :300])


@pytest.mark.parametrize("seq_len", [300, 3000])
def test_rounding_of_transforms_stays_below_the_stated_bound(seq_len):
    q, k, v, h = torch.randn(1, seq_len, 2, 3), torch.randn(1, seq_len, 2, 3), torch.randn(1, seq_len, 2, 3), None
    h = torch.randn(2, seq_len)
    k[:, seq_len // 2 :] *= 1e4
    exact = by_pairs(*(t.double() for t in (q, k, v, h)))
    norms = (k.unsqueeze(-1) * v.unsqueeze(-2)).square().sum(1, keepdim=True).sqrt()  # [1, 1, m, n, p]
    reached = h.square().sum(1).sqrt()[:, None] * (q.abs().unsqueeze(-1) * norms).sum(-2)
    bound = torch.finfo(torch.float32).eps * math.log2(4 * seq_len) * reached
    assert ((by_fft(q, k, v, h) - exact).abs() <= bound).all()


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_keeps_for_backward_what_grows_with_the_length(form):
    """At 8192 tokens the scores of all pairs are 256 times as many as the inputs."""
    q, k, v, h = leaf(1, 8192, 1, 8), leaf(1, 8192, 1, 8), leaf(1, 8192, 1, 8), leaf(1, 8192)
    inputs = q.numel() + k.numel() + v.numel() + h.numel()
    assert saved_bytes(lambda: form(q, k, v, h)) <= 4 * inputs


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_memory_grows_no_faster_than_the_length(monkeypatch, form):
    monkeypatch.setattr(outer_conv_pairs, "_KEPT_SCORES", 0)
    largest = []
    for seq_len in (2048, 4096):
        inputs = leaf(1, seq_len, 1, 4), leaf(1, seq_len, 1, 4), leaf(1, seq_len, 1, 4), leaf(1, seq_len)
        with Largest() as mode:
            form(*inputs).sum().backward()
        largest.append(mode.elements)
    assert largest[1] <= 2.01 * largest[0] < 100 * 2048


@pytest.mark.parametrize("seq_len", [1, 128, 384])
def test_flops_are_those_executed(seq_len):
    q, k, v, h = leaf(1, seq_len, 3, 8), leaf(1, seq_len, 3, 8), leaf(1, seq_len, 3, 8), leaf(3, seq_len)
    forward, backward = count_flops(lambda: outer_conv(q, k, v, h))
    assert (forward, 0) == outer_conv_flops(seq_len, 3, 8)
    assert backward == 2 * forward


def test_cost_per_token_of_long_sequences_grows_with_the_logarithm_of_their_length():
    per_token = [sum(outer_conv_flops(length, 2, 4)) / length for length in (2048, 8192, 32768)]
    assert per_token[2] - per_token[1] < 1.05 * (per_token[1] - per_token[0])


@pytest.mark.parametrize("seq_len", [64, 200])
def test_bfloat16(seq_len):
    assert_matches(outer_conv, outer_conv_reference, arguments(seq_len, torch.bfloat16), 1.6e-2)


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_gradients_in_float64(form):
    inputs = [*(leaf(1, 5, 2, 3, dtype=torch.float64) for _ in range(3)), leaf(2, 5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(form, inputs)


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_vmap(form):
    assert_vmaps(form, (*(leaf(2, 9, 2, 3) for _ in range(3)), leaf(2, 9)))


@pytest.mark.parametrize("form", [by_pairs, by_fft])
def test_vmap_over_some_of_the_inputs(form):
    q, k, v, h = (
        torch.randn(3, 2, 150, 2, 4),
        torch.randn(2, 150, 2, 4),
        torch.randn(2, 3, 150, 2, 4),
        torch.randn(2, 150),
    )
    together = torch.func.vmap(form, in_dims=(0, None, 1, None))(q, k, v, h)
    for index in range(3):
        torch.testing.assert_close(together[index], form(q[index], k, v[:, index], h), rtol=1e-4, atol=1e-3)
