import sys

import pytest
import torch

from hybridtron.ops.native import library
from hybridtron.ops.ssm.mamba2 import mamba2_core
from tests.ops.compare import LENGTHS, assert_matches, assert_vmaps, leaf
from tests.ops.ssm.test_ssd import reference as ssd_by_recurrence

HEADS = [(4, 1), (4, 2), (3, 3)]
HEAD_DIM, STATE_DIM = 8, 6
OPTIONS = {
    "head_dim": HEAD_DIM,
    "state_dim": STATE_DIM,
    "chunk_size": 64,
    "eps": 0.1,
}  # small beside the squares, large enough for gradients that a norm nearly cancels


def arguments(seq_len, heads, groups, taps=4, batch=2, dtype=torch.float32):
    """packed, conv_weight, conv_bias, dt_bias, A, D, norm_weight."""
    inner, shared = heads * HEAD_DIM, groups * STATE_DIM
    return (
        leaf(seq_len, batch, 2 * inner + 2 * shared + heads, dtype=dtype),
        leaf(inner + 2 * shared, taps, dtype=dtype),
        leaf(inner + 2 * shared, dtype=dtype),
        (torch.randn(heads, dtype=dtype) - 3).requires_grad_(),
        (-torch.rand(heads, dtype=dtype) * 8 - 0.5).requires_grad_(),
        leaf(heads, dtype=dtype),
        leaf(inner, dtype=dtype),
    )


def reference(packed, conv_weight, conv_bias, dt_bias, A, D, norm_weight):
    """Formula by formula, the scan token by token; [s, b, .] throughout."""
    seq_len, heads, inner, taps = len(packed), len(D), len(D) * HEAD_DIM, conv_weight.shape[1]
    shared = (len(conv_weight) - inner) // 2
    z, x, dt = packed.split([inner, len(conv_weight), heads], -1)
    padded = torch.cat([x.new_zeros(taps - 1, *x.shape[1:]), x])
    convolved = conv_bias + sum(padded[tap : tap + seq_len] * conv_weight[:, tap] for tap in range(taps))
    x, b, c = (convolved * convolved.sigmoid()).transpose(0, 1).split([inner, shared, shared], -1)
    steps = (dt + dt_bias).exp().log1p().transpose(0, 1)
    b, c = (tensor.unflatten(-1, (-1, STATE_DIM)) for tensor in (b, c))
    y = ssd_by_recurrence(x.unflatten(-1, (heads, HEAD_DIM)), steps, A, b, c, D).transpose(0, 1).flatten(2)
    gated = (y * z * z.sigmoid()).unflatten(-1, (shared // STATE_DIM, -1))
    return (gated / (gated.square().mean(-1, keepdim=True) + OPTIONS["eps"]).sqrt()).flatten(2) * norm_weight


def core(*inputs, **options):
    return mamba2_core(*inputs, **{**OPTIONS, **options})


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_its_formulas(form, seq_len, heads, groups):
    assert_matches(core, reference, arguments(seq_len, heads, groups), 3e-5)


@pytest.mark.parametrize("taps", [1, 2, 5, 17])
def test_any_number_of_taps(form, taps):
    assert_matches(core, reference, arguments(70, 4, 2, taps), 3e-5)


def test_input_and_output_wider_than_a_thread_has_stack_for(form, monkeypatch):
    """16 taps of 2 groups of 65536 states are 8 MiB.

    All but 64 states of a group are zero: the rounding of sums of 65536 products depends on the processor.
    """
    monkeypatch.setattr(sys.modules[__name__], "STATE_DIM", 1 << 16)
    inputs = arguments(3, 2, 2, taps=16)
    with torch.no_grad():
        for of_channels in inputs[1:3]:
            of_channels[2 * HEAD_DIM :].unflatten(0, (-1, 1 << 10))[:, 1:] = 0
    assert_matches(lambda *t: core(*t, state_dim=1 << 16, chunk_size=2), reference, inputs, 3e-5)


@pytest.mark.parametrize("chunk_size", [1, 16, 256])
def test_the_chunk_size_changes_no_result(form, chunk_size):
    assert_matches(lambda *t: core(*t, chunk_size=chunk_size), reference, arguments(70, 4, 2), 3e-5)


def test_few_chunks_at_a_time_join_without_a_seam(form, monkeypatch):
    monkeypatch.setattr("hybridtron.ops.ssm.mamba2_buffers.CPU_BLOCK_ELEMENTS", 1)
    assert_matches(lambda *t: core(*t, chunk_size=16), reference, arguments(70, 4, 2), 3e-5)


def test_rows_need_not_follow_one_another(form):
    packed, *rest = arguments(70, 4, 2)
    wider = torch.randn(70, 2, packed.shape[-1] + 5)[..., 2:-3].requires_grad_()
    assert_matches(core, reference, (wider, *rest), 3e-5)
    narrow = torch.randn(2, packed.shape[-1], 70).permute(2, 0, 1).requires_grad_()
    assert_matches(core, reference, (narrow, *rest), 3e-5)


def test_a_gradient_that_is_one_value_for_all(form):
    inputs = arguments(70, 4, 2)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for actual, expected in zip(
        torch.autograd.grad(core(*inputs).sum(), inputs), torch.autograd.grad(reference(*wide).sum(), wide), strict=True
    ):
        assert (actual - expected).abs().max() < 3e-5 * expected.abs().max()


def test_steps_that_vanish_and_decays_that_underflow(form):
    packed, *rest = arguments(130, 4, 2)
    extreme = packed.detach().clone()
    extreme[:40, :, -4:] = -200
    extreme[60:100, :, -4:] = 30
    *_, dpacked = gradients_of(extreme.requires_grad_(), *rest)
    assert dpacked.isfinite().all()
    expected = reference(*(tensor.double() for tensor in (extreme, *rest)))
    torch.testing.assert_close(core(extreme, *rest).double(), expected, rtol=1e-3, atol=1e-3)


def gradients_of(packed, *rest):
    out = core(packed, *rest)
    return out, torch.autograd.grad(out.square().sum(), packed)[0]


def test_what_is_not_finite_reaches_the_output_and_the_gradient(form):
    packed, *rest = arguments(70, 4, 2)
    damaged = packed.detach().clone()
    damaged[33] = torch.nan
    out, dpacked = gradients_of(damaged.requires_grad_(), *rest)
    assert out[33:].isnan().all()
    assert dpacked[33].isnan().all()


def test_the_same_to_the_bit_on_two_threads(native):
    inputs = arguments(300, 8, 2, batch=2)
    one = gradients_of(*inputs)
    torch.set_num_threads(2)
    try:
        two = gradients_of(*inputs)
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))


def test_bfloat16():
    inputs = arguments(130, 4, 2, dtype=torch.bfloat16)
    assert_matches(core, reference, inputs, 8e-2)


def test_vmap():
    assert_vmaps(lambda p, w, b, t, a, d, n: core(p, w, b, t, -a.abs(), d, n, chunk_size=7), arguments(20, 4, 2))


def test_the_kernels_take_float32_alone(native):
    x = torch.ones(2)
    assert library.kernels_for(x)
    assert not library.kernels_for(x.double())
    assert not library.kernels_for(x, x.bfloat16())
    assert not library.kernels_for(x.to("meta"))
