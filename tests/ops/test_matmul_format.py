import pytest
import torch

from hybridtron.errors import UserError
from hybridtron.ops import matmul_format
from hybridtron.ops.matmul_format import multiplies_bf16, use_matmul_format

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _float32_afterwards():
    yield
    use_matmul_format("float32", CPU)


def products():
    """A product, and the gradients of its factors."""
    torch.manual_seed(0)
    x, weight = torch.randn(256, 128, requires_grad=True), torch.randn(64, 128, requires_grad=True)
    y = torch.nn.functional.linear(x, weight)
    return (y, *torch.autograd.grad(y.square().sum(), (x, weight)))


def largest_errors(found, exact):
    return [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(found, exact, strict=True)]


def test_factors_are_rounded_to_bf16_only_while_asked_for():
    exact = products()
    if not multiplies_bf16():
        with pytest.raises(UserError, match=r"precision.matmul = bf16: products .* are not computed in bf16"):
            use_matmul_format("bf16", CPU)
        return
    use_matmul_format("bf16", CPU)
    rounded = products()
    assert all(1e-4 < error < 2e-2 for error in largest_errors(rounded, exact))
    assert all(map(torch.equal, rounded, products()))
    use_matmul_format("float32", CPU)
    assert all(map(torch.equal, products(), exact))


def test_it_is_refused_where_it_is_not_faster(monkeypatch):
    monkeypatch.setattr(matmul_format, "multiplies_bf16", lambda: False)
    with pytest.raises(UserError, match=r"are not computed in bf16.*; expected float32"):
        use_matmul_format("bf16", CPU)
    with pytest.raises(UserError, match="is for CPUs; expected float32 on cuda:0"):
        use_matmul_format("bf16", torch.device("cuda:0"))
