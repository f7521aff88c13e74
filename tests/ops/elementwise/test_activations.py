import pytest
import torch

from hybridtron.ops.elementwise.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("form")


def test_values_at_minus_one_zero_and_two():
    expected = {
        "gelu": [-0.1588, 0.0, 1.9546],
        "relu": [0.0, 0.0, 2.0],
        "relu2": [0.0, 0.0, 4.0],
        "silu": [-0.2689, 0.0, 1.7616],
    }
    actual = {name: activation(torch.tensor([-1.0, 0.0, 2.0])) for name, activation in ACTIVATIONS.items()}
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], torch.tensor(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (5, 2, 300)])
def test_squared_relu_has_the_values_and_gradients_of_its_formula(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype, requires_grad=True)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = torch.where(x > 0, x, 0.0) ** 2
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(ACTIVATIONS["relu2"](x), expected)
    torch.testing.assert_close(torch.autograd.grad(ACTIVATIONS["relu2"](x), x, grad)[0], expected_grad)
    if x.dim() == 3:
        torch.testing.assert_close(ACTIVATIONS["relu2"](x.transpose(0, 1)), expected.transpose(0, 1))
