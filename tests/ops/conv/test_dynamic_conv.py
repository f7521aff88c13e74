import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.conv.dynamic_conv import (
    dynamic_conv,
    dynamic_conv_prefill,
    dynamic_conv_reference,
    dynamic_conv_step,
)
from hybridtron.ops.conv.short_conv import short_conv
from tests.ops.compare import LENGTHS, assert_causal, assert_matches, assert_vmaps, token_major


def arguments(seq_len, taps=4, dtype=torch.float32, channels=6):
    return token_major(2, seq_len, channels, dtype=dtype), token_major(2, seq_len, taps, channels, dtype=dtype)


@pytest.mark.parametrize("taps", [1, 4, 7])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_matches_the_definition(seq_len, taps):
    assert_matches(dynamic_conv, dynamic_conv_reference, arguments(seq_len, taps), 1e-5)


def test_taps_that_every_token_has_are_a_short_convolution():
    x, _ = arguments(30)
    weight = torch.randn(6, 4)
    taps = weight.t().expand(2, 30, 4, 6)
    torch.testing.assert_close(dynamic_conv(x, taps), short_conv(x, weight), rtol=1e-5, atol=1e-5)


def test_is_a_sum_over_windows():
    x, taps = (tensor.detach().double() for tensor in arguments(30, 3))
    windows = F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1)  # [b, s, c, k]
    torch.testing.assert_close(dynamic_conv(x, taps), (windows * taps.transpose(2, 3)).sum(-1))


def test_causal():
    x, taps = (tensor.detach() for tensor in arguments(30))
    assert_causal(lambda t: dynamic_conv(t, taps), x)


def test_steps_and_pieces_reproduce_the_sequence():
    x, taps = (tensor.detach() for tensor in arguments(150))
    cache, outputs = torch.zeros(2, 3, 6), []
    for t in range(70):
        y, cache = dynamic_conv_step(cache, x[:, t], taps[:, t])
        outputs.append(y)
    for piece in (slice(70, 71), slice(71, 140), slice(140, 150)):
        y, cache = dynamic_conv_prefill(cache, x[:, piece], taps[:, piece])
        outputs.extend(y.unbind(1))
    torch.testing.assert_close(torch.stack(outputs, 1), dynamic_conv(x, taps), rtol=1e-5, atol=1e-5)
    assert torch.equal(cache, x[:, -3:])


def test_bfloat16():
    assert_matches(dynamic_conv, dynamic_conv_reference, arguments(300, dtype=torch.bfloat16), 2e-2)


def test_vmap():
    assert_vmaps(dynamic_conv, arguments(20))
