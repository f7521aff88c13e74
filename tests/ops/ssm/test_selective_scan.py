import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.ssm import selective_scan as module
from hybridtron.ops.ssm.selective_scan import selective_scan, selective_scan_reference, selective_scan_step
from hybridtron.ops.ssm.selective_scan_tiles import TiledScan
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major


def arguments(seq_len, width=10, dtype=torch.float32, batch=2, state_dim=4):
    """x, dt, A, B, C, D."""
    dt = F.softplus(torch.randn(batch, seq_len, width) - 2)
    return (
        token_major(batch, seq_len, width, dtype=dtype),
        dt.requires_grad_(),
        (-torch.rand(width, state_dim) * 4 - 0.5).requires_grad_(),
        token_major(batch, seq_len, state_dim, dtype=dtype),
        token_major(batch, seq_len, state_dim, dtype=dtype),
        leaf(width),
    )


@pytest.mark.parametrize("seq_len", [31, 32, 33, *LENGTHS])
@pytest.mark.usefixtures("form")
def test_matches_the_recurrence(seq_len):
    assert_matches(selective_scan, selective_scan_reference, arguments(seq_len), 3e-5)


@pytest.mark.parametrize("seq_len", [1, 7, 100])
@pytest.mark.usefixtures("form")
def test_is_the_sum_over_all_earlier_tokens(seq_len):
    """Equation 2 of Mamba (arXiv 2312.00752) unrolled, its matrices by mamba-ssm's rule: A's by exp(dt A), B's by dt B.

    Independent of the recurrence: every pair of tokens in float64.
    """
    x, dt, A, B, C, D = (t.detach().double() for t in arguments(seq_len))
    passed = dt.cumsum(1)
    span = (passed.unsqueeze(2) - passed.unsqueeze(1)).clamp_min(0)  # [b, to, from, c]
    reach = torch.exp(span.unsqueeze(-1) * A)  # [b, to, from, c, n]
    reach = reach * torch.ones(seq_len, seq_len).tril().view(1, seq_len, seq_len, 1, 1)
    expected = torch.einsum("bin,bijcn,bjn,bjc->bic", C, reach, B, dt * x) + D * x
    with torch.no_grad():
        found = selective_scan(*(t.float() for t in (x, dt, A, B, C, D)))
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "state_dim"), [(1, 1), (32, 3), (70, 16), (33, 65)])
@pytest.mark.usefixtures("form")
def test_any_width_and_any_number_of_states(width, state_dim):
    assert_matches(selective_scan, selective_scan_reference, arguments(40, width, state_dim=state_dim), 3e-5)


def test_the_plain_form_matches_the_recurrence():
    assert_matches(module._plain_scan, selective_scan_reference, arguments(65), 3e-5)


@pytest.mark.usefixtures("native")
def test_the_same_on_two_threads():
    inputs = arguments(300, 100)

    def gradients():
        outputs = selective_scan(*inputs)
        return outputs, *torch.autograd.grad(outputs.square().sum(), inputs)

    expected = gradients()
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(one, other) for one, other in zip(gradients(), expected, strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("elements", [1, 700, 2000])
def test_many_tiles_join_without_a_seam(monkeypatch, elements):
    """Tiles of a few channels, of all channels of a sequence, and of several sequences."""
    monkeypatch.setattr("hybridtron.ops.elementwise.row_blocks.CPU_BLOCK_ELEMENTS", elements)
    assert_matches(TiledScan.apply, selective_scan_reference, arguments(70, batch=5), 3e-5)


@pytest.mark.usefixtures("form")
def test_decays_that_underflow_stay_finite():
    x, dt, A, B, C, D = arguments(130)
    inputs = (x, (dt.detach() * 1e3).requires_grad_(), (A.detach() * 10).requires_grad_(), B, C, D)
    assert_matches(selective_scan, selective_scan_reference, inputs, 3e-5)


def test_one_decay_for_all_states_is_a_state_space_of_mamba2():
    from hybridtron.ops.ssm.ssd import ssd_reference

    x, dt, A, B, C, D = (tensor.detach() for tensor in arguments(70))
    expected, _ = ssd_reference(x.unsqueeze(-1), dt, A[:, 0], B.unsqueeze(2), C.unsqueeze(2), D)  # a head per channel
    y = selective_scan(x, dt, A[:, :1].expand_as(A), B, C, D)
    torch.testing.assert_close(y.double(), expected.squeeze(-1), rtol=1e-4, atol=1e-5)


def test_causal():
    x, *rest = (tensor.detach() for tensor in arguments(150))
    assert_causal(lambda t: selective_scan(t, *rest), x)


def test_steps_reproduce_the_sequence():
    x, dt, A, B, C, D = (tensor.detach() for tensor in arguments(70))
    state, outputs = torch.zeros(2, 10, 4), []
    for t in range(70):
        y, state = selective_scan_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), selective_scan(x, dt, A, B, C, D), rtol=1e-4, atol=1e-5)


def test_has_no_matrix_multiplication():
    inputs = arguments(70, batch=1)
    assert count_flops(lambda: selective_scan(*inputs)) == (0, 0)


def test_bfloat16():
    assert_matches(selective_scan, selective_scan_reference, arguments(300, dtype=torch.bfloat16), 1e-2)


def test_gradients_in_float64():
    inputs = [tensor.detach().double().requires_grad_() for tensor in arguments(7, 3, batch=1, state_dim=2)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    def op(x, dt, A, B, C, D):
        return selective_scan(x, F.softplus(dt), -A.exp(), B, C, D)

    assert_vmaps(op, arguments(seq_len))


def test_shapes_without_values():
    """On the meta device a long scan is as quick as a short one."""
    inputs = [t.detach().to("meta").requires_grad_() for t in arguments(100_000)]
    y = selective_scan(*inputs)
    assert y.shape == inputs[0].shape
    for gradient, tensor in zip(torch.autograd.grad(y, inputs, torch.empty_like(y)), inputs, strict=True):
        assert gradient.shape == tensor.shape
