import pytest
import torch

from hybridtron.ops.moe.grouped_linear import grouped_linear, grouped_linear_reference
from tests.ops.compare import assert_matches, count_flops, leaf


def operands(counts, dtype=torch.float32):
    return leaf(sum(counts), 24, dtype=dtype), leaf(len(counts), 40, 24, dtype=dtype)


@pytest.mark.parametrize("counts", [(7, 0, 30, 1), (0, 0, 5), (64,)])
def test_matches_its_definition(counts):
    assert_matches(
        lambda rows, weight: grouped_linear(rows, weight, counts),
        lambda rows, weight: grouped_linear_reference(rows, weight, counts),
        operands(counts),
        1e-5,
    )


def test_no_rows_at_all():
    rows, weight = operands((0, 0))
    out = grouped_linear(rows, weight, (0, 0))
    out.sum().backward()
    assert out.shape == (0, 40)
    assert not weight.grad.any()


def test_gradients_in_float64():
    rows, weight = leaf(5, 3, dtype=torch.float64), leaf(3, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows, weight: grouped_linear(rows, weight, (2, 0, 3)), (rows, weight))


def test_rows_that_lie_apart_in_memory():
    rows, weight = operands((3, 4))
    transposed = rows.detach().T.contiguous().T
    torch.testing.assert_close(grouped_linear(transposed, weight, (3, 4)), grouped_linear(rows, weight, (3, 4)))


def test_flops_are_those_of_the_rows():
    rows, weight = operands((3, 0, 4))
    assert count_flops(lambda: grouped_linear(rows, weight, (3, 0, 4))) == (2 * 7 * 24 * 40, 4 * 7 * 24 * 40)
