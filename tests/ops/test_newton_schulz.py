"""Newton-Schulz iterations make matrices nearly orthogonal."""

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from hybridtron.ops.newton_schulz import COEFFICIENTS, EPS, orthogonalize


@pytest.mark.parametrize("shape", [(12, 32), (32, 12), (3, 16, 16)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalize(matrix, 5, torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ found @ vt.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-10
    assert 0.3 < values.min() <= values.max() < 1.25


def test_it_is_that_of_torch_in_bfloat16():
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    expected = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, EPS).float()
    for dtype in (torch.bfloat16, torch.float32):
        assert (orthogonalize(matrix, 5, dtype) - expected).norm() < 0.05 * expected.norm()


def test_a_matrix_of_zeros_stays():
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))
