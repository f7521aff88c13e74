"""Other packages' kernels get what their documentation asks for, and their results are those of our ops.

Their functions are replaced by formulas of the same signature, which check layouts and dtypes as the packages do.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops import vendor
from hybridtron.ops.attention import flash_window
from hybridtron.ops.attention.softmax import attention_reference
from hybridtron.ops.conv import vendor as conv_vendor
from hybridtron.ops.conv.short_conv import short_conv_reference
from hybridtron.ops.dispatch import OPERATIONS
from hybridtron.ops.ssm import vendor as ssm_vendor
from hybridtron.ops.ssm.mamba2_buffers import Sizes
from hybridtron.ops.ssm.selective_scan import selective_scan_reference
from hybridtron.ops.ssm.ssd import ssd_reference
from tests.ops.compare import assert_matches, leaf, token_major
from tests.ops.ssm import test_mamba2 as mamba2


@pytest.fixture
def installed(monkeypatch):
    """Offer these functions as the modules of vendors."""

    def offer(**functions):
        monkeypatch.setattr(vendor, "_imported", lambda module: SimpleNamespace(**functions))

    return offer


@pytest.fixture
def as_on_cuda(monkeypatch, installed):
    """Take tensors of a CPU for such of a GPU on which every package is installed."""
    for module in (conv_vendor, ssm_vendor, flash_window):
        monkeypatch.setattr(module, "on_cuda", lambda *_: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    installed()


class ReadsRows(torch.autograd.Function):
    """The identity, whose gradient must meet causal-conv1d's conditions on rows."""

    @staticmethod
    def forward(ctx, y):
        return y.transpose(1, 2).contiguous().transpose(1, 2)

    @staticmethod
    def backward(ctx, grad):
        _check_rows(grad)
        return grad


def _check_rows(x):
    batch, channel, token = x.stride()
    assert channel == 1
    assert token > 1
    assert token % 8 == batch % 8 == 0
    assert x.storage_offset() * x.element_size() % 16 == 0


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    """x [b, c, s], weight [c, taps], bias [c]."""
    channels, taps = weight.shape
    assert 2 <= taps <= 4
    assert bias is None or bias.dtype == weight.dtype
    rows = x.stride(2) != 1
    if rows:
        assert channels % 8 == 0
        _check_rows(x)
    bias = None if bias is None else bias.float()
    y = F.conv1d(x.float(), weight.float().unsqueeze(1), bias, padding=taps - 1, groups=channels)[..., : x.shape[-1]]
    y = (F.silu(y) if activation else y).to(x.dtype)
    return ReadsRows.apply(y) if rows else y


@pytest.mark.parametrize("channels", [6, 16])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(installed, channels, activation):
    installed(causal_conv1d_fn=causal_conv1d_fn)
    inputs = (token_major(2, 9, channels), leaf(channels, 4), leaf(channels))
    assert_matches(
        lambda *t: conv_vendor.causal_conv1d(*t, activation),
        lambda *t: short_conv_reference(*t, activation),
        inputs,
        1e-5,
    )
    assert_matches(conv_vendor.causal_conv1d, short_conv_reference, inputs[:2], 1e-5)


def test_rows_that_causal_conv1d_can_read_are_not_copied():
    packed = torch.randn(5, 2, 40)
    aligned = packed[..., 8:24].transpose(0, 1)
    assert conv_vendor.with_aligned_rows(aligned) is aligned
    for other in (packed[..., 2:18].transpose(0, 1), torch.randn(5, 1, 17)[..., :16].transpose(0, 1)):
        copy = conv_vendor.with_aligned_rows(other)
        _check_rows(copy.transpose(1, 2))
        torch.testing.assert_close(copy, other, rtol=0, atol=0)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None):
    """x [b, s, h, p], dt [b, s, h], A [h], B and C [b, s, g, n], D [h]; no softplus by default."""
    assert dt.dtype == A.dtype == D.dtype == torch.float32
    assert x.dtype == B.dtype == C.dtype
    assert chunk_size in (64, 128, 256)
    return ssd_reference(x, dt, A, B, C, D)[0].to(x.dtype)


@pytest.mark.parametrize("chunk_size", [16, 100, 512])
def test_mamba_ssm_ssd(installed, chunk_size):
    installed(mamba_chunk_scan_combined=mamba_chunk_scan_combined)
    x, b, c = token_major(2, 9, 4, 8), token_major(2, 9, 2, 6), token_major(2, 9, 2, 6)
    inputs = (x, F.softplus(leaf(2, 9, 4)), -leaf(4).exp(), b, c, leaf(4))
    reference = lambda *t: ssd_reference(*t)[0]  # noqa: E731
    assert_matches(lambda *t: ssm_vendor.mamba_ssm_ssd(*t, chunk_size), reference, inputs, 1e-5)


class ReadsChannels(torch.autograd.Function):
    """The identity, whose gradient must have contiguous channels, as mamba-ssm's norm wants."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        assert grad.stride(-1) == 1
        return grad


def mamba_split_conv1d_scan_combined(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None,
    dt_limit=(0.0, float("inf")), return_final_states=False, activation="silu", rmsnorm_weight=None, rmsnorm_eps=1e-6,
    outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True,
):  # fmt: skip
    """zxbcdt [b, s, z + x + B + C + dt], dt_bias, A and D [h], rmsnorm_weight [x]; gives [b, s, x]."""
    assert zxbcdt.is_contiguous()  # the gradient of z goes into a view of a tensor of the same strides
    assert zxbcdt.stride(0) == zxbcdt.shape[1] * zxbcdt.stride(1)  # of sequences of one token too
    assert conv1d_weight.dtype == conv1d_bias.dtype
    assert dt_bias.dtype == A.dtype == D.dtype == torch.float32
    assert chunk_size in (64, 128, 256)
    inner, width, group = len(D) * headdim, len(conv1d_weight), len(rmsnorm_weight) // ngroups
    z, conv_input, dt = zxbcdt.float().split([inner, width, len(D)], -1)
    x = causal_conv1d_fn(conv_input.mT.contiguous(), conv1d_weight, conv1d_bias, activation=activation).mT
    x, b, c = x.split([inner, (width - inner) // 2, (width - inner) // 2], -1)
    b, c = b.unflatten(-1, (ngroups, -1)), c.unflatten(-1, (ngroups, -1))
    y = ssd_reference(x.unflatten(-1, (-1, headdim)), F.softplus(dt + dt_bias), A, b, c, D)[0].flatten(2)
    gate, eps = F.silu(z), rmsnorm_eps
    y = y if norm_before_gate else y * gate
    y = F.rms_norm(y.unflatten(-1, (-1, group)), (group,), eps=eps).flatten(-2) * rmsnorm_weight.float()
    return ReadsChannels.apply((y * gate if norm_before_gate else y).to(zxbcdt.dtype))


@pytest.mark.parametrize(
    ("seq_len", "heads", "groups", "batch"), [(9, 4, 1, 1), (9, 4, 2, 2), (9, 2, 2, 3), (1, 4, 1, 2)]
)
def test_mamba_ssm_mamba2(installed, seq_len, heads, groups, batch):
    installed(mamba_split_conv1d_scan_combined=mamba_split_conv1d_scan_combined)
    inputs = mamba2.arguments(seq_len, heads, groups, batch=batch)

    def bound(packed, conv_weight, *rest):
        sizes = Sizes.of(packed, conv_weight, rest[-2], mamba2.HEAD_DIM, mamba2.STATE_DIM, 100)
        return ssm_vendor.mamba_ssm_mamba2(sizes, mamba2.OPTIONS["eps"], packed, conv_weight, *rest)

    assert_matches(bound, mamba2.reference, inputs, 1e-5)
    torch.autograd.grad(bound(*inputs).sum(), inputs)


@pytest.mark.usefixtures("as_on_cuda")
def test_mamba2_takes_mamba_ssm_but_for_limits(installed):
    def gives_ones(zxbcdt, *weights, **options):
        return torch.ones(*zxbcdt.shape[:2], 32)

    installed(mamba_split_conv1d_scan_combined=gives_ones)
    packed, weight, _, *rest = mamba2.arguments(9, 4, 2, dtype=torch.bfloat16)
    assert torch.equal(mamba2.core(packed, weight, None, *rest), torch.ones(9, 2, 32))
    assert ssm_vendor.MAMBA2 in OPERATIONS["mamba2_core"].implementations[:-1]
    with pytest.raises(AttributeError, match="causal_conv1d_fn"):
        mamba2.core(packed, weight, None, *rest, dt_limit=(0.1, 1.0))


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """u and delta [b, d, s], A [d, n], B and C [b, n, s], D [d]."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == D.dtype == torch.float32
    assert all(t.stride(-1) == 1 for t in (u, delta, B, C))
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = (step * A).exp() * state + step * u[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, 2)


def test_mamba_ssm_selective_scan(installed):
    installed(selective_scan_fn=selective_scan_fn)
    b, c = token_major(2, 9, 5), token_major(2, 9, 5)
    inputs = (token_major(2, 9, 6), F.softplus(leaf(2, 9, 6)), -leaf(6, 5).exp(), b, c, leaf(6))
    assert_matches(ssm_vendor.mamba_ssm_selective_scan, selective_scan_reference, inputs, 1e-5)
    half = (inputs[0].bfloat16(), *inputs[1:])
    assert ssm_vendor.mamba_ssm_selective_scan(*half).dtype == torch.bfloat16


def flash_attention_forward(
    q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
    scale, window_size_left, window_size_right, **others,
):  # fmt: skip
    """Query i sees keys from i - window_size_left to i + window_size_right; [b, s, heads, d]."""
    assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
    assert max_q == max_k == q.shape[1]
    position = torch.arange(max_q)
    distance = position - position[:, None]
    seen = (distance >= -window_size_left) & (distance <= window_size_right)
    repeats = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    out = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return out, *(torch.empty(0) for _ in range(4))


def test_flash_attention_takes_the_window():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_attention_forward, "CPU")
    try:
        q, k, v = torch.randn(2, 20, 4, 8), torch.randn(2, 20, 2, 8), torch.randn(2, 20, 2, 8)
        y = flash_window.flash_window(q, k, v, 5, 0.3)
    finally:
        library._destroy()
    torch.testing.assert_close(y.double(), attention_reference(q, k, v, 5, 0.3), rtol=1e-4, atol=1e-5)


def test_flash_attention_has_gradients_of_the_arguments_shapes():
    q, k, v = (torch.randn(2, 20, heads, 8, device="meta", dtype=torch.bfloat16) for heads in (4, 2, 2))
    inputs = [t.requires_grad_() for t in (q, k, v)]
    y = flash_window.flash_window(*inputs, 5, 0.3)
    assert y.shape == q.shape
    assert [g.shape for g in torch.autograd.grad(y.sum(), inputs)] == [q.shape, k.shape, v.shape]


@pytest.mark.usefixtures("as_on_cuda")
def test_conditions():
    half, wide = torch.ones(2, 9, 4, 8, dtype=torch.bfloat16), torch.ones(2, 9, 4, 8)
    window = flash_window.FLASH_WINDOW.accepts
    assert window(4, 1.0, half, half, half, None)
    for refused in (
        (None, 1.0, half, half, half, None),  # no window
        (9, 1.0, half, half, half, None),  # one that hides nothing
        (4, -1.0, half, half, half, None),
        (4, 1.0, wide, wide, wide, None),
        (4, 1.0, half[..., :4], half[..., :4], half[..., :4], None),
        (4, 1.0, half[:, :3], half, half, None),  # later queries of a sequence
        (4, 1.0, half, half, half, torch.ones(4)),
    ):
        assert not window(*refused)
    taps = conv_vendor.CAUSAL_CONV1D.accepts
    x = wide[:, :, 0]
    assert taps(x, torch.ones(8, 4), None, None)
    assert not taps(x, torch.ones(8, 5), None, None)
    assert not taps(x.double(), torch.ones(8, 4), None, None)
    ssd, rest = ssm_vendor.SSD.accepts, (wide[..., 0], wide[0, 0, :, 0])
    assert ssd(half, *rest, half, half, None)
    assert not ssd(wide, *rest, wide, wide, None)
    assert not ssd(half, *rest, wide, half, None)
    for shape in ((1, 1 << 26, 4, 8), (1 << 14, 9, 4, 8)):  # 2^31 numbers; in chunks of 256 tokens, 2^32 products
        large = half[:1, :1].expand(shape)
        assert not ssd(large, *rest, large, large, None)
    wide_apart = torch.empty_strided(half.shape, (1 << 31, 0, 0, 0), dtype=half.dtype, device="meta")
    assert not ssd(wide_apart, *rest, half, half, None)
    scan = ssm_vendor.SELECTIVE_SCAN.accepts
    assert scan(torch.ones(8, 256), x)
    assert not scan(torch.ones(8, 257), x)
    assert not scan(torch.ones(8, 16), x.double())


@pytest.mark.usefixtures("as_on_cuda")
def test_conditions_of_mamba2(monkeypatch):
    packed, *weights = mamba2.arguments(9, 4, 2, dtype=torch.bfloat16)
    sizes = Sizes.of(packed, weights[0], weights[-2], mamba2.HEAD_DIM, mamba2.STATE_DIM, 64)
    accepts = ssm_vendor.MAMBA2.accepts
    assert accepts(sizes, packed, *(t.float() for t in weights))
    for refused in (
        sizes._replace(taps=1),
        sizes._replace(taps=5),
        sizes._replace(state_dim=264),
        sizes._replace(head_dim=3, heads=4),  # 12 channels
        sizes._replace(state_dim=5),  # 52 channels
        sizes._replace(head_dim=1 << 15),
        sizes._replace(seq_len=1, batch=1),
    ):
        assert not accepts(refused, packed, *weights)
    for seq_len, batch in ((1 << 25, 1), (1, 1 << 15)):  # more than 2^31 numbers of packed, or of products in chunks
        large = sizes._replace(seq_len=seq_len, batch=batch)
        assert not accepts(large, packed[:1, :1].expand(seq_len, batch, -1), *weights)
    assert not accepts(sizes, packed.float(), *weights)
    assert not accepts(sizes, packed, *(t.double() for t in weights))
    monkeypatch.setattr(ssm_vendor, "usable", lambda module: not module.startswith("causal_conv1d"))
    assert not accepts(sizes, packed, *weights)


def test_tensors_of_a_cpu_and_without_values_are_not_on_cuda():
    assert not vendor.on_cuda(torch.ones(2))
    assert not vendor.on_cuda(torch.ones(2, device="meta"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1"), ({"TRITON_CACHE_AUTOTUNING": "0"}, "0"), ({"MAMBA_DETERMINISTIC": "1"}, None)],
    ids=["alone", "a user's value", "deterministic"],
)
def test_what_autotuning_finds_is_kept_on_disk(tmp_path, monkeypatch, given, expected):
    """Triton reads it while the package is imported."""
    name = f"with_kernels_{len(given)}_{expected}"
    (tmp_path / f"{name}.py").write_text("import os\nFOUND = os.environ.get('TRITON_CACHE_AUTOTUNING')")
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("TRITON_CACHE_AUTOTUNING", "MAMBA_DETERMINISTIC"):
        monkeypatch.setenv(variable, "")  # so that it is taken back to what it was
        monkeypatch.delenv(variable)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert vendor.vendor_function(name, "FOUND") == expected


def test_a_package_that_does_not_import_is_reported_and_not_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "half_installed.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not vendor.usable("half_installed")
    assert not vendor.usable("no_such_package.module")
    assert [record.getMessage() for record in caplog.records] == [
        "half_installed is installed but not used: importing it failed: undefined symbol"
    ]
