"""How the ops are held against their float64 references."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)

LENGTHS = (1, 7, 63, 64, 65, 1000)  # around a chunk of 64


def token_major(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """A leaf of shape [b, s, ...] in memory as a slice of [s, b, ..., more], which is how the ops are called."""
    batch, seq_len, *rest, width = shape
    memory = torch.randn(seq_len, batch, *rest, width + 3, dtype=dtype, device=device)
    return memory.transpose(0, 1)[..., :width].detach().requires_grad_()


def leaf(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=device, requires_grad=True)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def gradients(outputs: tuple[Tensor, ...], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the weighted sum of all outputs."""
    loss = sum((output.double() * weight.double()).sum() for output, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def assert_matches(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    tolerance: float,
) -> None:
    """Outputs and gradients of all inputs agree to `tolerance` times their largest magnitude (at least 1e-2)."""
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    outputs, expected = as_tuple(op(*inputs)), as_tuple(reference(*wide))
    weights = [torch.randn_like(output) for output in outputs]
    actual = (*outputs, *gradients(outputs, inputs, weights))
    for index, (one, other) in enumerate(zip(actual, (*expected, *gradients(expected, wide, weights)), strict=True)):
        assert one.shape == other.shape, f"tensor {index}: {one.shape} for {other.shape}"
        error = (one.double() - other).abs().max() / other.abs().max().clamp_min(1e-2)
        assert error < tolerance, f"tensor {index}: off by {error:.1e} of its largest magnitude"


def assert_vmaps(op: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> None:
    """vmap over a leading axis equals a loop, in values and gradients, and has a batching rule for every operation."""
    stacked = [torch.randn(3, *tensor.shape, dtype=tensor.dtype) if tensor.is_floating_point() else
               tensor.expand(3, *tensor.shape) for tensor in inputs]  # fmt: skip
    positions = tuple(index for index, tensor in enumerate(inputs) if tensor.is_floating_point())

    def loss(*arguments: Tensor) -> Tensor:
        return sum((output * output).sum() for output in as_tuple(op(*arguments)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = as_tuple(torch.func.vmap(op)(*stacked))
        slopes = torch.func.vmap(torch.func.grad(loss, argnums=positions))(*stacked)
    for index in range(3):
        own = [tensor[index].clone().requires_grad_(tensor.is_floating_point()) for tensor in stacked]
        for value, expected in zip(values, as_tuple(op(*own)), strict=True):
            torch.testing.assert_close(value[index], expected, rtol=1e-4, atol=1e-4)
        expected_slopes = torch.autograd.grad(loss(*own), [own[position] for position in positions])
        for slope, expected in zip(slopes, expected_slopes, strict=True):
            torch.testing.assert_close(slope[index], expected, rtol=1e-3, atol=1e-3)


def assert_same_on_any_number_of_threads(op: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Assert that the output and all gradients are the same bits on one thread and on two."""
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = op(*inputs)
            results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    finally:
        torch.set_num_threads(1)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def count_flops(function: Callable[[], Tensor]) -> tuple[int, int]:
    """Matmul FLOPs of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as forward:
        output = function()
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def saved_bytes(function: Callable[[], Tensor]) -> int:
    """Memory of all that the function keeps for its backward pass; views of the same memory count once."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def assert_causal(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs up to a token do not change when later tokens of x [b, s, ...] do, and the next output does."""
    cut = x.shape[1] // 2
    changed = x.detach().clone()
    changed[:, cut:] += 1
    before, after = op(x.detach()), op(changed)
    torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(before[:, cut], after[:, cut], rtol=0, atol=1e-6)
