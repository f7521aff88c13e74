import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.conv import short_conv as module
from hybridtron.ops.conv.short_conv import short_conv, short_conv_reference, short_conv_step
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, leaf, token_major

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_its_formula(seq_len, activation):
    inputs = token_major(2, seq_len, 12), leaf(12, 4), leaf(12)
    assert_matches(lambda *t: short_conv(*t, activation), lambda *t: short_conv_reference(*t, activation), inputs, 1e-5)


def test_without_a_bias():
    assert_matches(short_conv, short_conv_reference, (token_major(2, 9, 5), leaf(5, 3)), 1e-5)


def test_many_tiles_join_without_a_seam(monkeypatch):
    monkeypatch.setattr(module, "_TILE_CHANNELS", 7)
    monkeypatch.setattr("hybridtron.ops.elementwise.row_blocks.CPU_BLOCK_ELEMENTS", 40)
    inputs = token_major(2, 65, 20), leaf(20, 4), leaf(20)
    assert_matches(lambda *t: short_conv(*t, "silu"), lambda *t: short_conv_reference(*t, "silu"), inputs, 1e-5)


def test_equals_a_depthwise_convolution():
    x, weight, bias = torch.randn(2, 30, 6), torch.randn(6, 4), torch.randn(6)
    expected = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=6)[..., :30].transpose(1, 2)
    torch.testing.assert_close(short_conv(x, weight, bias), expected)


def test_causal():
    weight = torch.randn(5, 4)
    assert_causal(lambda x: short_conv(x, weight, None, "silu"), torch.randn(2, 20, 5))


def test_steps_reproduce_the_sequence():
    x, weight, bias = torch.randn(2, 10, 5), torch.randn(5, 4), torch.randn(5)
    cache, outputs = torch.zeros(2, 3, 5), []
    for t in range(10):
        y, cache = short_conv_step(cache, x[:, t], weight, bias, "silu")
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), short_conv(x, weight, bias, "silu"))


def test_bfloat16():
    inputs = [leaf(*shape, dtype=torch.bfloat16) for shape in ((2, 300, 12), (12, 4), (12,))]
    assert_matches(lambda *t: short_conv(*t, "silu"), lambda *t: short_conv_reference(*t, "silu"), inputs, 8e-3)


def test_gradients_in_float64():
    inputs = [leaf(*shape, dtype=torch.float64) for shape in ((2, 6, 3), (3, 4), (3,))]
    assert torch.autograd.gradcheck(lambda *t: short_conv(*t, "silu"), inputs)


def test_vmap():
    assert_vmaps(lambda *t: short_conv(*t, "silu"), (leaf(2, 9, 5), leaf(5, 4), leaf(5)))
