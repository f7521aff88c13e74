import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.flops import ssd_flops
from hybridtron.ops.ssm import ssd as module
from hybridtron.ops.ssm.ssd import ssd, ssd_reference, ssd_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major

HEADS = [(4, 1), (4, 2), (3, 3)]


def arguments(seq_len, heads, groups, dtype=torch.float32, batch=2, head_dim=8, state_size=6):
    """x, dt, A, B, C, D."""
    dt, decay_rate = F.softplus(torch.randn(batch, seq_len, heads) - 3), torch.rand(heads) * 8 + 0.5
    return (
        token_major(batch, seq_len, heads, head_dim, dtype=dtype),
        dt.requires_grad_(),
        (-decay_rate).requires_grad_(),
        token_major(batch, seq_len, groups, state_size, dtype=dtype),
        token_major(batch, seq_len, groups, state_size, dtype=dtype),
        leaf(heads),
    )


def reference(*inputs):
    return ssd_reference(*inputs)[0]


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_recurrence(seq_len, heads, groups):
    assert_matches(lambda *t: ssd(*t, 64), reference, arguments(seq_len, heads, groups), 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 16, 256])
def test_the_chunk_size_changes_no_result(chunk_size):
    assert_matches(lambda *t: ssd(*t, chunk_size), reference, arguments(70, 4, 2), 3e-5)


def test_without_a_skip():
    *inputs, _ = arguments(70, 4, 2)
    assert_matches(lambda *t: ssd(*t, None, 64), reference, inputs, 3e-5)


def test_decays_of_tokens():
    x, dt, _, B, C, _ = arguments(70, 4, 2)
    decays = (-torch.rand(2, 70, 4) - 0.01).requires_grad_()

    def recurrence(x, dt, decays, B, C):  # with decays as steps, and inputs divided by them
        return reference(x * (dt / -decays).unsqueeze(-1), -decays, -torch.ones(4), B, C)

    assert_matches(lambda *t: ssd(*t, None, 16), recurrence, (x, dt, decays, B, C), 3e-5)
    few = [tensor[:, :12] for tensor in (x, dt, decays, B, C)]
    assert_vmaps(lambda x, dt, A, B, C: ssd(x, F.softplus(dt), -F.softplus(A), B, C, None, 8), few)


def test_many_tiles_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("hybridtron.ops.ssm.ssd_tiles.CPU_BLOCK_ELEMENTS", 1)
    assert_matches(lambda *t: ssd(*t, 16), reference, arguments(70, 4, 2), 3e-5)


def test_decays_that_underflow_stay_finite():
    x, dt, A, B, C, D = arguments(130, 4, 2)
    inputs = (x, (dt.detach() * 1e3).requires_grad_(), (A.detach() * 10).requires_grad_(), B, C, D)
    assert_matches(lambda *t: ssd(*t, 64), reference, inputs, 3e-5)


def test_a_step_of_zero_leaves_the_state_and_has_a_gradient():
    x, dt, *rest = arguments(70, 4, 2)
    masked = dt.detach().clone()
    masked[:, 20:30] = 0
    assert_matches(lambda *t: ssd(*t, 64), reference, (x, masked.requires_grad_(), *rest), 3e-5)


def test_causal():
    x, *rest = (tensor.detach() for tensor in arguments(150, 4, 2))
    assert_causal(lambda t: ssd(t, *rest, 64), x)


def test_steps_reproduce_the_sequence():
    x, dt, A, B, C, D = (tensor.detach() for tensor in arguments(70, 4, 2))
    state, outputs = torch.zeros(2, 4, 8, 6), []
    for t in range(70):
        y, state = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), ssd(x, dt, A, B, C, D, 16), rtol=1e-4, atol=1e-5)


def test_the_reference_continues_from_a_state():
    x, dt, A, B, C, D = (tensor.detach() for tensor in arguments(20, 4, 2))
    whole, final = ssd_reference(x, dt, A, B, C, D)
    _, state = ssd_reference(x[:, :12], dt[:, :12], A, B[:, :12], C[:, :12], D)
    rest, end = ssd_reference(x[:, 12:], dt[:, 12:], A, B[:, 12:], C[:, 12:], D, state)
    torch.testing.assert_close(rest, whole[:, 12:])
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("form", ["ssd", "plain"])
@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("seq_len", [1, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len, heads, groups, form):
    inputs = arguments(seq_len, heads, groups, batch=1)
    length = module.chunks_of(seq_len, 64)[1]
    op = (lambda: ssd(*inputs, 64)) if form == "ssd" else lambda: module._plain_ssd(*inputs, length)
    forward, backward = count_flops(op)
    assert forward == ssd_flops(seq_len, heads, 8, groups, 6, 64)
    assert backward == 2 * forward


def test_bfloat16():
    assert_matches(lambda *t: ssd(*t, 64), reference, arguments(300, 4, 2, dtype=torch.bfloat16), 2e-2)


def test_gradients_in_float64():
    x, dt, A, B, C, D = arguments(7, 4, 2, batch=1, head_dim=2, state_size=3)
    inputs = [tensor.detach().double().requires_grad_() for tensor in (x, dt, A, B, C, D)]
    assert torch.autograd.gradcheck(lambda *t: ssd(*t, 3), inputs)


@pytest.mark.parametrize("seq_len", [7, 20])
def test_vmap(seq_len):
    assert_vmaps(lambda x, dt, A, B, C, D: ssd(x, F.softplus(dt), -A.exp(), B, C, D, 7), arguments(seq_len, 4, 2))
