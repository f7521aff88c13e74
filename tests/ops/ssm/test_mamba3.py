import math

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.flops import mamba3_flops
from hybridtron.ops.ssm.mamba3 import Mamba3State, mamba3, mamba3_prefill, mamba3_reference, mamba3_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, count_flops, leaf, token_major

HEADS, HEAD_DIM, STATE, PAIRS = 3, 6, 8, 2
RANKS = [1, 4]


def arguments(seq_len, rank=1, dtype=torch.float32, batch=2):
    """x, dt, log decays, mixes, angular velocities, B, C, D."""
    dt = F.softplus(torch.randn(batch, seq_len, HEADS) - 2)
    decay = -dt * F.softplus(torch.randn(batch, seq_len, HEADS))
    mix, theta = torch.rand(batch, seq_len, HEADS), math.pi * torch.randn(batch, seq_len, HEADS, PAIRS).tanh()
    wide = [token_major(batch, seq_len, HEADS, rank, size, dtype=dtype) for size in (HEAD_DIM, STATE, STATE)]
    narrow = [tensor.requires_grad_() for tensor in (dt, decay, mix, theta)]
    return (wide[0], *narrow, *wide[1:], leaf(HEADS))


def reference(*inputs):
    return mamba3_reference(*inputs)[0]


def zero_state(rank, batch=2):
    sizes = (HEAD_DIM, STATE), (rank, STATE), (rank, HEAD_DIM), (PAIRS,)
    return Mamba3State(*(torch.zeros(batch, HEADS, *size) for size in sizes))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seq_len", [*LENGTHS, 15, 16, 17])
def test_matches_the_recurrence(seq_len, rank):
    assert_matches(lambda *t: mamba3(*t, 64), reference, arguments(seq_len, rank), 5e-5)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("chunk_size", [1, 16, 256])
def test_the_chunk_size_changes_no_result(chunk_size, rank):
    assert_matches(lambda *t: mamba3(*t, chunk_size), reference, arguments(70, rank), 5e-5)


@pytest.mark.parametrize("rank", RANKS)
def test_decays_that_underflow_stay_finite(rank):
    x, dt, decay, *rest = arguments(130, rank)
    inputs = (x, dt, (decay.detach() * 1e3).requires_grad_(), *rest)
    assert_matches(lambda *t: mamba3(*t, 64), reference, inputs, 5e-5)


@pytest.mark.parametrize("rank", RANKS)
def test_few_strong_decays_leave_the_others_exact(rank):
    x, dt, decay, *rest = arguments(130, rank)
    decay = torch.where(torch.rand(decay.shape) < 0.1, -1e5, decay.detach() / 50).requires_grad_()
    inputs = (x, dt, decay, *rest)
    assert_matches(lambda *t: mamba3(*t, 64), reference, inputs, 5e-5)
    y, _ = mamba3_prefill(zero_state(rank), *inputs, 64)
    torch.testing.assert_close(y, mamba3(*inputs, 64), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", RANKS)
def test_steps_and_decays_of_zero_stay_finite(rank):
    x, dt, decay, mix, *rest = (tensor.detach() for tensor in arguments(130, rank))
    dt[:, 40:50], decay[:, 40:50], mix[:, 60], mix[:, 61] = 0, 0, 0, 1
    inputs = [tensor.requires_grad_() for tensor in (x, dt, decay, mix, *rest)]
    assert_matches(lambda *t: mamba3(*t, 64), reference, inputs, 5e-5)


@pytest.mark.parametrize("rank", RANKS)
def test_later_tokens_change_no_bit_of_earlier_outputs(rank):
    inputs = [tensor.detach() for tensor in arguments(150, rank)]
    assert_causal(lambda t: mamba3(t, *inputs[1:], 64), inputs[0])
    changed = [tensor.clone() for tensor in inputs]
    for tensor in changed[:-1]:
        tensor[:, 75:] *= 0.5
    before, after = mamba3(*inputs, 64), mamba3(*changed, 64)
    assert torch.equal(before[:, :75], after[:, :75])
    assert not torch.allclose(before[:, 75], after[:, 75])


@pytest.mark.parametrize("rank", RANKS)
def test_steps_and_pieces_reproduce_the_sequence_and_its_state(rank):
    *tokens, D = (tensor.detach() for tensor in arguments(150, rank))
    whole, final = mamba3_reference(*tokens, D)
    state, outputs = zero_state(rank), []
    for t in range(70):
        y, state = mamba3_step(state, *(tensor[:, t] for tensor in tokens), D)
        outputs.append(y)
    for piece in (slice(70, 71), slice(71, 135), slice(135, 150)):
        y, state = mamba3_prefill(state, *(tensor[:, piece] for tensor in tokens), D, 16)
        outputs.extend(y.unbind(1))
    torch.testing.assert_close(torch.stack(outputs, 1).double(), whole, rtol=1e-4, atol=1e-5)
    for one, other in zip(state, final, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seq_len", [1, 7, 64, 128, 300])
def test_flops_are_those_executed(seq_len, rank):
    inputs = arguments(seq_len, rank, batch=1)
    forward, backward = count_flops(lambda: mamba3(*inputs, 64))
    assert forward == mamba3_flops(seq_len, HEADS, HEAD_DIM, STATE, rank, 64)
    assert backward == 2 * forward


@pytest.mark.parametrize("rank", RANKS)
def test_bfloat16(rank):
    assert_matches(lambda *t: mamba3(*t, 64), reference, arguments(300, rank, dtype=torch.bfloat16), 5e-2)


@pytest.mark.parametrize("rank", RANKS)
def test_vmap(rank):
    def op(x, dt, decay, mix, *rest):
        return mamba3(x, F.softplus(dt), -F.softplus(decay), mix.sigmoid(), *rest, 8)

    assert_vmaps(op, arguments(20, rank))
