"""How far a token reaches in every primitive: whatever it holds, to later tokens of its document and to no others.

Only a NaN or an infinity may reach earlier tokens, of the chunk in which a matrix product multiplies it by zero.
"""

import math

import pytest
import torch

from hybridtron.ops.moe.attached_loss import attached_losses_scale
from tests.mixers.test_contract import CASES, WIDTH, assert_near
from tests.mixers.test_documents import LENGTHS, SEQ_LEN, built, documents

# Experts multiply as many rows at a time as chose them, and RWKV-7 takes decays relative to the middle of a chunk.
ROUNDED = {"moe", "rwkv7"}


def assert_same(one, other, case):
    if CASES[case]["type"] in ROUNDED:
        assert_near(one, other, 2e-6)
    else:
        assert torch.equal(one, other)


def outcome(mixer, x, counted, documents=None):
    """Return the outputs [s, b, h] and the gradients by x of a sum over those that are counted [s, b]."""
    x = x.clone().requires_grad_()
    with attached_losses_scale(0.0):  # of which some are means over all tokens
        y = mixer(x, documents)
        (gradients,) = torch.autograd.grad(y, x, counted.unsqueeze(-1) * torch.ones_like(y))
    return y.detach(), gradients


@pytest.fixture(scope="module")
def x():
    return torch.randn(SEQ_LEN, len(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_a_token_changes_no_bit_of_earlier_outputs_and_their_gradients(case, x):
    mixer = built(case).layers["0"].mixer
    earlier = torch.ones(SEQ_LEN, len(LENGTHS), dtype=torch.bool)
    earlier[21:, 1] = False
    changed = x.clone()
    changed[21, 1] *= 1000
    (y, gradients), (after, others) = (outcome(mixer, each, earlier) for each in (x, changed))
    assert_same(after[earlier], y[earlier], case)
    assert_same(others[earlier], gradients[earlier], case)
    assert not torch.equal(after[21, 1], y[21, 1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_stays_in_its_document(case, value, x):
    mixer = built(case).layers["0"].mixer
    apart = torch.ones(SEQ_LEN, len(LENGTHS), dtype=torch.bool)
    apart[16:24, 2] = False  # the second document of the third sequence
    spoiled = x.clone()
    spoiled[20, 2] = value
    (y, gradients), (after, others) = (outcome(mixer, each, apart, documents()) for each in (x, spoiled))
    assert_same(after[apart], y[apart], case)
    assert_same(others[apart], gradients[apart], case)
    assert not after[20, 2].isfinite().all()
