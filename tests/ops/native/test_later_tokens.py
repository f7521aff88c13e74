"""In the compiled kernels not even a NaN reaches another sequence or the outputs of earlier tokens, nor a NaN among the
gradients by outputs those by later tokens: such pairs are left out, and not only multiplied by zero."""

import math
from functools import partial

import pytest
import torch

from hybridtron.ops.attention.native_attention import NativeAttention
from hybridtron.ops.attention.query_blocks import BlockAttention
from hybridtron.ops.attention.small_heads import SmallHeads
from hybridtron.ops.attention.tiles import TiledAttention
from hybridtron.ops.conv.long_conv import _NativeLongConv
from hybridtron.ops.conv.outer_conv_native import NativeOuterConv
from hybridtron.ops.conv.short_conv import _NativeShortConv
from hybridtron.ops.ssm.selective_scan import _NativeScan

pytestmark = pytest.mark.usefixtures("native")

SEQ_LEN, WINDOW = 150, 20
HEADS = ((3, 16),) * 3  # channels of q, k and v
CASES = {  # shapes of a token's inputs, the function of these, and that of other inputs
    "outer_conv": (((3, 8),) * 3, lambda h, *t: NativeOuterConv.apply(*t, h), (3, SEQ_LEN)),
    "outer_conv, wide": (((1, 16),) * 3, lambda h, *t: NativeOuterConv.apply(*t, h), (1, SEQ_LEN)),
    "small heads": (HEADS, lambda _, *t: SmallHeads.apply(*t, None, 0.3, None), ()),
    "small heads with a window": (HEADS, lambda _, *t: SmallHeads.apply(*t, WINDOW, 0.3, None), ()),
    "attention": (((2, 32),) * 3, lambda _, *t: NativeAttention.apply(*t, 0.3, None, 0.0), ()),
    "attention with a cap": (((2, 32),) * 3, lambda _, *t: NativeAttention.apply(*t, 0.3, None, 2.0), ()),
    "long_conv": (((20,),), lambda h, u: _NativeLongConv.apply(u, h), (20, 60)),
    "short_conv": (((20,),), lambda w, x: _NativeShortConv.apply(x, w, None, "silu"), (20, 4)),
    "selective_scan": (
        ((20,), (20,), (4,), (4,)),
        lambda A, x, dt, B, C: _NativeScan.apply(x, dt.abs(), -A.abs(), B, C, A[:, 0]),
        (20, 4),
    ),
}
TOKENS = (0, 1, 7, 8, 63, 64, 100, SEQ_LEN - 1)
everywhere = pytest.mark.parametrize("token", TOKENS)
every_case = pytest.mark.parametrize("case", CASES)


def arguments(case):
    """The operation as a function of the tokens' inputs, and these [2, s, ...]."""
    shapes, function, others = CASES[case]
    return partial(function, torch.randn(others)), [
        torch.randn(2, SEQ_LEN, *shape).requires_grad_() for shape in shapes
    ]


def spoiled(x, token, value):
    """A copy with a token's values replaced in the second sequence."""
    changed = x.detach().clone()
    changed[1, token] = value
    return changed.requires_grad_()


@everywhere
@every_case
def test_values_that_are_not_finite_reach_later_outputs_alone(case, token):
    op, inputs = arguments(case)
    before = op(*inputs)
    for value in (math.nan, math.inf):
        after = op(*(spoiled(t, token, value) for t in inputs))
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1, :token], before[1, :token])
        assert not after[1, token].isfinite().any()
        if "window" in case:
            assert torch.equal(after[1, token + WINDOW :], before[1, token + WINDOW :])


@everywhere
@every_case
def test_gradients_that_are_not_finite_reach_earlier_tokens_alone(case, token):
    op, inputs = arguments(case)
    weights = torch.randn_like(op(*inputs))
    found = torch.autograd.grad(op(*inputs), inputs, weights)
    for value in (math.nan, math.inf):
        again = torch.autograd.grad(op(*inputs), inputs, spoiled(weights, token, value))
        for one, other in zip(again, found, strict=True):
            assert torch.equal(one[0], other[0])
            bound = 1e-6 * float(other.abs().max())  # in a tile without zeros for such pairs sums are rounded otherwise
            torch.testing.assert_close(one[1, token + 1 :], other[1, token + 1 :], rtol=0, atol=bound)
            assert not one[1, token].isfinite().all()


@everywhere
@pytest.mark.parametrize("case", [case for case, (shapes, *_) in CASES.items() if len(shapes) == 3])
def test_gradients_by_earlier_queries_do_not_depend_on_later_keys(case, token):
    op, inputs = arguments(case)
    weights = torch.randn_like(op(*inputs))
    changed = [spoiled(t, token, math.nan) for t in inputs]
    (one, *_), (other, *_) = (torch.autograd.grad(op(*each), each, weights) for each in (changed, inputs))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1, :token], other[1, :token])


SHOWN = {  # attention of q, k and v
    "compiled": lambda *t: NativeAttention.apply(*t, 0.3, None, 0.0),
    "small heads": lambda *t: SmallHeads.apply(*t, None, 0.3, None),
    "small heads with a window": lambda *t: SmallHeads.apply(*t, WINDOW, 0.3, None),
    "tiles": lambda *t: TiledAttention.apply(*t, None, 0.3, None, 0.0, None),
    "tiles with a window": lambda *t: TiledAttention.apply(*t, WINDOW, 0.3, None, 0.0, None),
    "tiles with a cap": lambda *t: TiledAttention.apply(*t, None, 0.3, None, 1e33, None),
    "blocks": lambda *t: BlockAttention.apply(*t, None, 0.3, None, True),
    "blocks with a window": lambda *t: BlockAttention.apply(*t, WINDOW, 0.3, None, True),
}
every_attention = pytest.mark.parametrize("op", SHOWN.values(), ids=SHOWN)


def with_scores_below_those_of_unseen_keys(token):
    """q, k and v with scores of about -1e32 for all that the tokens up to this one see; their outputs are NaN."""
    q, k, v = (torch.randn(1, 40, 1, 32) for _ in range(3))
    q[:, : token + 1], k[:, : token + 1] = 1e16, -1e16
    return q, k, v


@pytest.mark.parametrize("token", [0, 3, 20])
@every_attention
def test_scores_below_those_of_unseen_keys_show_none_of_these(op, token):
    q, k, v = with_scores_below_those_of_unseen_keys(token)
    changed = torch.cat([v[:, : token + 1], v[:, token + 1 :] + 1], 1)
    before, after = (op(q, k, each)[:, : token + 1] for each in (v, changed))
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(op(q, k, v)[:, token + 1 :], op(q, k, changed)[:, token + 1 :])


@pytest.mark.parametrize("token", [0, 3, 20])
@every_attention
def test_scores_below_those_of_unseen_keys_give_their_values_no_gradient(op, token):
    q, k, v = with_scores_below_those_of_unseen_keys(token)
    counted = torch.zeros_like(v)
    counted[:, : token + 1] = 1
    (gradient,) = torch.autograd.grad(op(q, k, v.requires_grad_()), v, counted)
    assert not gradient[:, token + 1 :].any()
    assert gradient[:, : token + 1].any()
