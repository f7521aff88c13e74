import pytest
import torch

from hybridtron.ops.attention.over_states import attend_over_states, attend_over_states_reference
from tests.ops.compare import assert_matches, assert_vmaps, leaf


@pytest.mark.parametrize("normed_values", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_values_and_gradients_are_those_of_the_formula(count, normed_values):
    torch.manual_seed(0)
    inputs = [leaf(24), *(leaf(5, 3, 24) for _ in range(count))]
    assert_matches(
        lambda query, *states: attend_over_states(query, states, 1e-5, normed_values),
        lambda query, *states: attend_over_states_reference(query, states, 1e-5, normed_values),
        inputs,
        1e-5,
    )


def test_it_vmaps():
    torch.manual_seed(0)
    inputs = [leaf(8), leaf(5, 3, 8), leaf(5, 3, 8)]
    assert_vmaps(lambda query, *states: attend_over_states(query, states, 1e-5), inputs)
