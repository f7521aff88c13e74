"""The compiled kernels of multi-head Hyena's convolution."""

import pytest
import torch

from hybridtron.ops.conv.outer_conv import by_pairs, outer_conv, outer_conv_reference
from hybridtron.ops.conv.outer_conv_native import takes_native_outer_conv
from tests.ops.compare import (
    assert_causal,
    assert_matches,
    assert_same_on_any_number_of_threads,
    count_flops,
    leaf,
    token_major,
)

pytestmark = pytest.mark.usefixtures("native")


def arguments(seq_len, width=8, batch=2, heads=3):
    return (*(token_major(batch, seq_len, heads, width) for _ in range(3)), leaf(heads, seq_len))


@pytest.mark.parametrize("seq_len", [1, 7, 15, 16, 17, 127, 128, 129, 700])
def test_matches_the_sum(seq_len):
    inputs = arguments(seq_len)
    assert takes_native_outer_conv(*inputs)
    assert_matches(outer_conv, outer_conv_reference, inputs, 1e-5)


@pytest.mark.parametrize("width", [8, 16, 24, 32])
def test_widths(width):
    inputs = arguments(70, width)
    assert takes_native_outer_conv(*inputs)
    assert_matches(outer_conv, outer_conv_reference, inputs, 1e-5)


@pytest.mark.parametrize(("batch", "heads", "seq_len"), [(1, 1, 40), (17, 2, 33), (3, 40, 60)])
def test_any_number_of_sequences_and_heads(batch, heads, seq_len):
    """Gradients of the filters are added up over eight sequences; 60 tokens of 32 heads of 8 are copied at a time."""
    assert_matches(outer_conv, outer_conv_reference, arguments(seq_len, 8, batch, heads), 1e-5)


def test_strides_of_projections_that_lie_side_by_side():
    """Heads of q, k and v are parts of the same rows, of which some have their channels strided."""
    rows, h = leaf(2, 50, 3, 32), leaf(3, 50)

    def op(rows, h, form):
        return form(rows[..., :8], rows[..., 8:24:2], rows[..., 24:], h)

    assert_matches(lambda *t: op(*t, outer_conv), lambda *t: op(*t, outer_conv_reference), (rows, h), 1e-5)


def test_equals_the_products_of_pytorch():
    inputs = arguments(150)
    torch.testing.assert_close(outer_conv(*inputs), by_pairs(*inputs), rtol=1e-4, atol=1e-3)


def test_causal_to_the_last_bit():
    x, h = torch.randn(1, 200, 2, 8), torch.randn(2, 200)
    assert_causal(lambda t: outer_conv(t, t, t, h) / 1000, x)
    changed = torch.cat([x[:, :100], 1e6 * x[:, 100:]], 1)
    assert torch.equal(outer_conv(x, x, x, h)[:, :100], outer_conv(changed, changed, changed, h)[:, :100])


def test_results_do_not_depend_on_the_number_of_threads():
    assert_same_on_any_number_of_threads(outer_conv, arguments(150, batch=20))


def test_output_lies_in_memory_as_the_values_do():
    assert outer_conv(*arguments(9)).transpose(0, 1).is_contiguous()
    assert outer_conv(*(t.contiguous() for t in arguments(9))).is_contiguous()


@pytest.mark.parametrize(
    "changes",
    [{"width": 12}, {"width": 40}, {"width": 0}, {"heads": 0}, {"seq_len": 2049}, {"dtype": torch.float64}],
    ids=["odd width", "wide", "no channels", "no heads", "long", "float64"],
)
def test_others_are_left_to_pytorch(changes):
    sizes = {"width": 8, "heads": 2, "seq_len": 4, "dtype": torch.float32} | changes
    x = torch.zeros(1, sizes["seq_len"], sizes["heads"], sizes["width"], dtype=sizes["dtype"])
    assert not takes_native_outer_conv(x, x, x, x.new_zeros(sizes["heads"], sizes["seq_len"]))


def test_flops_that_are_counted_are_those_of_pytorch():
    forward, backward = count_flops(lambda: outer_conv(*arguments(20)))
    assert backward == 2 * forward > 0
