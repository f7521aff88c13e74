"""Emulated FP8 linears: the products of the rounded operands, with scales of each group."""

import pytest
import torch
import torch.nn.functional as F

from hybridtron.ops.fp8.linear import Operands, fp8_grouped_linear, fp8_linear
from hybridtron.ops.fp8.recipes import RECIPES, quantize, tensor_scale
from hybridtron.ops.fp8.state import ROLES, FP8State

CPU = torch.device("cpu")


def operands(recipe: str, experts: int = 1, history: int = 3) -> tuple[FP8State, Operands]:
    state = FP8State(recipe, {"linear": experts}, history, CPU)
    return state, Operands.of(state, "linear", slice(0, experts), lambda amax: None)


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return quantize(x, tensor_scale(x.abs().max(), dtype), dtype).values()


def draws(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])) * scale


def test_products_are_those_of_rounded_operands():
    x, w, b, dy = draws(5, 2, 48), draws(32, 48, scale=0.02), draws(32), draws(5, 2, 32, scale=1e-6)
    x.requires_grad_(), w.requires_grad_()
    y = fp8_linear(x, w, b, operands("tensorwise")[1])
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    spec = RECIPES["tensorwise"]
    qx, qw, qdy = (rounded(t.detach(), spec.dtype(role)) for t, role in zip((x, w, dy), ROLES, strict=True))
    assert torch.allclose(y, F.linear(qx, qw, b), atol=1e-6)
    assert torch.allclose(dx, qdy @ qw, rtol=1e-4, atol=1e-12)
    assert torch.allclose(dw, qdy.flatten(0, 1).T @ qx.flatten(0, 1), rtol=1e-4, atol=1e-11)
    assert not torch.allclose(y, F.linear(x, w, b), atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_close_to_exact_products(recipe):
    x, w, dy = draws(40, 3, 200), draws(144, 200, scale=0.02), draws(40, 3, 144, scale=1e-6)
    x.requires_grad_(), w.requires_grad_()
    got = [y := fp8_linear(x, w, None, operands(recipe)[1]), *torch.autograd.grad(y, (x, w), dy)]
    exact = [y := F.linear(x, w), *torch.autograd.grad(y, (x, w), dy)]
    for one, other in zip(got, exact, strict=True):
        assert 0.01 < (one - other).norm() / other.norm() < 0.07


def test_each_expert_has_scales_of_its_own():
    rows, w = draws(20, 32), draws(3, 16, 32)
    rows[12:] *= 1e5  # those of the last expert, the second has none
    counts = [12, 0, 8]
    got = fp8_grouped_linear(rows, w, counts, operands("tensorwise", 3)[1])
    for e, (group, y) in enumerate(zip(rows.split(counts), got.split(counts), strict=True)):
        if len(group):
            alone = fp8_linear(group, w[e], None, operands("tensorwise")[1])
            assert torch.equal(y, alone)


def test_delayed_scales_follow_from_the_largest_value_of_earlier_steps():
    state, ops = operands("delayed", history=2)
    x, w = torch.full((16, 16), 2.0), torch.eye(16)
    scale = {}
    for step, size in enumerate((1.0, 8.0, 0.5, 0.5)):
        fp8_linear(size * x, w.requires_grad_(), None, ops).sum().backward()
        scale[step] = state.history[:, state.slots("linear", "x")].amax().item()
        state.end_step(lambda amax: None, applied=step != 3)
    assert list(scale.values()) == [0.0, 2.0, 16.0, 16.0]
    assert state.history[:, state.slots("linear", "x")].flatten().tolist() == [1.0, 16.0]  # step 3 was not applied
    y = fp8_linear(100 * x[:, :1].expand(16, 16), w, None, ops)
    assert y.max().item() == pytest.approx(16.0)  # saturated at the largest value of earlier steps
    fresh, other = operands("delayed", history=2)
    fresh.load_state_dict(state.state_dict())
    assert torch.equal(fp8_linear(3 * x, w, None, other), fp8_linear(3 * x, w, None, ops))
    with pytest.raises(ValueError, match="linear is not finite numbers of shape"):
        operands("delayed", history=3)[0].load_state_dict(state.state_dict())


def test_statistics_are_collected_where_asked_for_and_gradients_are_recorded():
    state, ops = operands("tensorwise")
    x, w = draws(16, 16), draws(16, 16)
    fp8_linear(x, w.requires_grad_(), None, ops).sum().backward()
    assert not state.counts.any()
    state.collects = True
    with torch.no_grad():
        fp8_linear(100 * x, w, None, ops)  # as in an evaluation
    outlier = x.clone()
    outlier[0, 0] = 1e9
    fp8_linear(outlier, w, None, ops).sum().backward()
    found = state.take_statistics(lambda t: None, lambda t: None)["linear"]
    assert found["x"] == {"amax": 1e9, "saturated": 0.0, "flushed": 255 / 256}
    assert found["grad"]["amax"] == 1.0
    assert not state.counts.any()
