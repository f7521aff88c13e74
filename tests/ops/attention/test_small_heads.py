"""The kernels for many small heads, which take 32 heads or more in a batch."""

import pytest
import torch

from hybridtron.ops.attention.small_heads import takes_small_heads
from hybridtron.ops.attention.softmax import attention, attention_reference
from tests.ops.compare import assert_causal, assert_matches, assert_same_on_any_number_of_threads, token_major

pytestmark = pytest.mark.usefixtures("native")


def projections(num_queries, num_keys, width=8, out_width=8):
    return (
        token_major(4, num_queries, 8, width),
        token_major(4, num_keys, 4, width),
        token_major(4, num_keys, 4, out_width),
    )


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(
    ("num_queries", "num_keys"), [(1, 1), (7, 7), (16, 16), (17, 17), (150, 150), (3, 40), (33, 90)]
)
def test_matches_the_full_square(num_queries, num_keys, window):
    inputs = projections(num_queries, num_keys)
    assert takes_small_heads(window, 1.0, *inputs, None)
    assert_matches(lambda *t: attention(*t, window), lambda *t: attention_reference(*t, window), inputs, 1e-5)


@pytest.mark.parametrize(("width", "out_width"), [(8, 16), (24, 8), (32, 32), (64, 40)])
def test_widths(width, out_width):
    inputs = projections(70, 70, width, out_width)
    assert takes_small_heads(None, 1.0, *inputs, None)
    assert_matches(attention, attention_reference, inputs, 1e-5)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_scale(scale):
    inputs = projections(40, 40)
    assert_matches(lambda *t: attention(*t, scale=scale), lambda *t: attention_reference(*t, scale=scale), inputs, 1e-5)


def test_causal():
    assert_causal(lambda x: attention(x, x, x), torch.randn(2, 50, 16, 8))


def test_infinite_and_missing_numbers_reach_what_sees_them():
    q, k, v = (t.detach() for t in projections(40, 40))
    k[0, 20] = torch.nan
    y = attention(q, k, v)
    assert y[0, 20:].isnan().all()
    assert y[0, :20].isfinite().all()
    assert y[1:].isfinite().all()


def test_results_do_not_depend_on_the_number_of_threads():
    assert_same_on_any_number_of_threads(attention, projections(150, 150))


def test_output_lies_in_memory_as_the_values_do():
    assert attention(*projections(9, 9)).transpose(0, 1).is_contiguous()
    assert attention(*(t.contiguous() for t in projections(9, 9))).is_contiguous()


@pytest.mark.parametrize(
    "changes",
    [{"heads": 7}, {"width": 12}, {"width": 72}, {"seq_len": 1025}, {"dtype": torch.bfloat16}],
    ids=["few", "odd width", "wide", "long", "bfloat16"],
)
def test_others_are_left_to_batched_products(changes):
    sizes = {"heads": 32, "width": 8, "seq_len": 4, "dtype": torch.float32} | changes
    x = torch.zeros(1, sizes["seq_len"], sizes["heads"], sizes["width"], dtype=sizes["dtype"])
    assert not takes_small_heads(None, 1.0, x, x, x, None)
