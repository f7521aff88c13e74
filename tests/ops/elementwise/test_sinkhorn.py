import pytest
import torch

from hybridtron.ops.elementwise.sinkhorn import sinkhorn, sinkhorn_reference
from tests.ops.compare import assert_matches, assert_vmaps


def positive(*shape):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + 0.1).requires_grad_()


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("shape", [(5, 3, 3), (7, 2, 4, 4)])
def test_values_and_gradients_are_those_of_the_formula(iterations, shape):
    x = [positive(*shape)]
    assert_matches(lambda x: sinkhorn(x, iterations, 1e-6), lambda x: sinkhorn_reference(x, iterations, 1e-6), x, 1e-5)


def test_matrices_become_doubly_stochastic():
    x = sinkhorn(positive(5, 4, 4), 20, 1e-6)
    for axis in (-1, -2):
        torch.testing.assert_close(x.sum(axis), torch.ones(5, 4), rtol=0, atol=1e-4)


def test_it_vmaps():
    assert_vmaps(lambda x: sinkhorn(x.exp(), 4, 1e-6), [positive(5, 4, 4)])
