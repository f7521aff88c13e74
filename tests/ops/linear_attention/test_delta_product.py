import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.linear_attention.delta_product import (
    gated_delta_product,
    gated_delta_product_reference,
    gated_delta_product_step,
)
from tests.ops.compare import assert_causal, assert_matches, token_major


def arguments(seq_len, steps=2, groups=2, heads=4, dtype=torch.float32):
    """q, k, v, g, beta, with strengths up to two."""
    q, k = (token_major(2, seq_len, *shape, 6, dtype=dtype) for shape in ((groups,), (steps, groups)))
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    g = F.logsigmoid(torch.randn(2, seq_len, heads) + 3).requires_grad_()
    beta = (2 * torch.rand(2, seq_len, steps, heads)).requires_grad_()
    return q, k, token_major(2, seq_len, steps, heads, 8, dtype=dtype), g, beta


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("seq_len", [1, 7, 21, 22, 31, 32, 33, 1000])
def test_matches_the_recurrence(seq_len, steps):
    inputs = arguments(seq_len, steps)
    assert_matches(lambda *t: gated_delta_product(*t, 64), gated_delta_product_reference, inputs, 1e-4)


def test_bfloat16():
    inputs = arguments(150, dtype=torch.bfloat16)
    assert_matches(lambda *t: gated_delta_product(*t, 64), gated_delta_product_reference, inputs, 1e-2)


def test_two_steps_make_a_rotation():
    """Two reflections turn the plane of their keys, which one step of strength two cannot."""
    angle, keys = torch.tensor(0.3), torch.tensor([[1.0, 0.0]])
    first, second = keys, torch.stack([angle.cos(), angle.sin()]).unsqueeze(0)
    k = torch.stack([first, second]).expand(1, 8, 2, 1, 2)
    v, beta = torch.zeros(1, 8, 2, 1, 2), torch.full((1, 8, 2, 1), 2.0)
    v = v.index_put((torch.tensor(0), torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor([0.5, 0.0]))
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    read = [
        gated_delta_product(each.expand(1, 8, 1, 2), k, v, torch.zeros(1, 8, 1), beta, 16)[0, :, 0, 0] for each in q
    ]
    turned = torch.atan2(read[1], read[0]).diff() % (2 * torch.pi)
    torch.testing.assert_close(turned, torch.full((7,), 0.6), atol=1e-4, rtol=0)


def test_causal():
    q, k, v, g, beta = (tensor.detach() for tensor in arguments(70))
    assert_causal(lambda t: gated_delta_product(q, k, t, g, beta, 64), v)


def test_steps_reproduce_the_sequence():
    inputs = [tensor.detach() for tensor in arguments(50, 3)]
    state, outputs = torch.zeros(2, 4, 6, 8), []
    for t in range(50):
        y, state = gated_delta_product_step(state, *(tensor[:, t] for tensor in inputs))
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), gated_delta_product(*inputs, 16), rtol=1e-4, atol=1e-5)
