import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.modal_filter import modal_filter, modal_step
from hybridtron.ops.flops import modal_filter_flops
from tests.ops.compare import assert_matches, assert_vmaps, leaf

LENGTHS = (1, 7, 35, 36, 37, 1000)


def modes(groups=3, order=5, dtype=torch.float32):
    return (-torch.rand(groups, order, dtype=dtype) / 10).requires_grad_(), leaf(groups, order, dtype=dtype)


@pytest.mark.parametrize("length", LENGTHS)
def test_is_the_sum_of_its_exponentials(length):
    def formula(log_poles, residues):
        lags = torch.arange(length, dtype=torch.float64)
        return (residues.unsqueeze(-1) * (log_poles.unsqueeze(-1) * lags).exp()).sum(1)

    assert_matches(lambda *t: modal_filter(*t, length), formula, modes(), 1e-5)


def test_steps_are_the_convolution():
    (log_poles, residues), u = (t.detach() for t in modes()), torch.randn(2, 70, 6)
    state, outputs = torch.zeros(2, 6, 5), []
    for t in range(70):
        y, state = modal_step(state, u[:, t], log_poles, residues)
        outputs.append(y)
    expected = long_conv(u, modal_filter(log_poles, residues, 70))
    torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-4, atol=1e-5)


def test_steps_in_bfloat16_keep_their_state_in_float32():
    (log_poles, residues), u = (t.detach() for t in modes()), torch.randn(2, 70, 6).bfloat16()
    state, exact = torch.zeros(2, 6, 5), torch.zeros(2, 6, 5, dtype=torch.float64)
    for t in range(70):
        y, state = modal_step(state, u[:, t], log_poles.bfloat16().float(), residues.bfloat16().float())
        expected, exact = modal_step(
            exact, u[:, t].double(), log_poles.bfloat16().double(), residues.bfloat16().double()
        )
        assert y.dtype == torch.bfloat16
        assert state.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_flops_are_those_executed(length):
    with FlopCounterMode(display=False) as forward:
        h = modal_filter(*modes(), length)
    with FlopCounterMode(display=False) as backward:
        h.sum().backward()
    assert forward.get_total_flops() == modal_filter_flops(3, 5, length)
    assert backward.get_total_flops() == 2 * modal_filter_flops(3, 5, length)


def test_gradients_in_float64():
    assert torch.autograd.gradcheck(lambda *t: modal_filter(*t, 11), modes(dtype=torch.float64))


def test_vmap():
    assert_vmaps(lambda log_poles, residues: modal_filter(-log_poles.abs(), residues, 11), modes())
