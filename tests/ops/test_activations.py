import torch

from hybridtron.ops.activations import ACTIVATIONS


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
