"""Every implementation that takes CUDA tensors, an own kernel or a vendor's, against the op in float64.

The table is that of `hybridtron.ops.dispatch`: an implementation registered there is tested here without more.
"""

import functools

import pytest
import torch
from gpu_parts.op_calls import CALLS, SMALL, Draw, call_of

from hybridtron.ops.dispatch import OPERATIONS, implementation_table
from tests.gpu.comparison import assert_near

pytestmark = pytest.mark.gpu

BOUNDS = {torch.float32: 2e-4, torch.bfloat16: 3e-2}  # relative to the norm of each output and gradient
SIZES = {
    "odd length": SMALL,
    "shorter than a chunk": SMALL._replace(seq_len=37),
    "as many heads as groups": SMALL._replace(groups=4, seq_len=256),
    "wide heads": SMALL._replace(heads=2, head_dim=128, state_dim=128, seq_len=300),
}
IMPLEMENTATIONS = [(name, entry.name) for name in CALLS for entry in OPERATIONS[name].implementations]


def results(call, size, device, dtype):
    """Return the output of an op and the gradient of each input."""
    inputs = call.inputs(Draw(size, device, dtype))
    y = call.call(size, *inputs)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(device, y.dtype)
    gradients = torch.autograd.grad(y, inputs, direction)
    return {"output": y.detach(), **{f"gradient {i}": gradient for i, gradient in enumerate(gradients)}}


@functools.cache
def exact(call, size):
    return results(call, SIZES[size], "cpu", torch.float64)


def test_every_operation_has_a_call(cuda):
    implementation_table(cuda)
    assert CALLS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_gives_what_float64_gives(cuda, monkeypatch, name, implementation, dtype, size):
    call, operation = call_of(name, implementation), OPERATIONS[name]
    expected = exact(call, size)
    only = next(entry for entry in operation.implementations if entry.name == implementation)
    monkeypatch.setitem(OPERATIONS, name, operation._replace(implementations=(only,)))
    try:
        actual = results(call, SIZES[size], cuda, dtype)
    except LookupError as error:
        if not str(error).startswith(name):
            raise
        pytest.skip(f"{implementation} is for other tensors: {only.condition}")
    assert_near(actual, expected, BOUNDS[dtype])
