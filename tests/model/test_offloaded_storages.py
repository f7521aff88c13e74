"""What a layer saves comes back from CPU memory with its values, shapes and strides, or is refused."""

import pytest
import torch
from torch import nn

from hybridtron.model.activation_offload import ActivationOffload
from tests.model.late_host import LateHost


class Function(nn.Module):
    """A layer that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, stream):
        return self.function(stream)


class Keep(torch.autograd.Function):
    """y = 2 x, which saves tensors and gives what it finds of them to a list."""

    @staticmethod
    def forward(ctx, x, found, *saved):
        ctx.save_for_backward(*saved)
        ctx.found, ctx.count = found, len(saved)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        ctx.found += ctx.saved_tensors
        return 2 * grad, None, *[None] * ctx.count


def restored(*saved, smallest=1):
    """Return the host, and what a layer finds of the tensors that it saves."""
    host, found = LateHost(), []
    layers = [Function(lambda x: Keep.apply(x, found, *saved)), Function(torch.clone)]
    x = torch.randn(4, requires_grad=True)
    ActivationOffload(layers, 1, host, smallest).run(x).sum().backward()
    return host, found


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[1:, ::2],
        lambda x: x[:1].expand(5, 6),
        lambda x: x.view(torch.int32)[2],
        lambda x: x[0, 0],
        lambda x: torch.view_as_complex(x.view(4, 3, 2)),
    ],
)
def test_views_keep_values_shapes_and_strides(view):
    x = torch.randn(4, 6)
    host, found = restored(view(x), x)
    for one, other in zip(found, (view(x), x), strict=True):
        assert torch.equal(one, other)
        assert (one.stride(), one.storage_offset(), one.dtype) == (other.stride(), other.storage_offset(), other.dtype)
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr() != x.data_ptr()
    assert host.sent == x.nbytes  # once


def test_conjugated_tensors_small_ones_and_those_of_other_devices_stay():
    x = torch.randn(4, 6, dtype=torch.complex64)
    saved = x.conj(), torch.randn(3), torch.empty(64, device="meta")
    host, found = restored(*saved, smallest=16)
    assert host.events == []
    assert torch.equal(found[0], x.conj())


def test_a_storage_that_several_layers_save_is_copied_once():
    value, host, found = torch.randn(64), LateHost(), []
    layers = [Function(lambda x: Keep.apply(x, found, value.view(8, 8)))] * 3
    x = torch.randn(4, requires_grad=True)
    ActivationOffload(layers, 2, host, smallest=64).run(x).sum().backward()
    assert host.sent == value.nbytes
    assert all(torch.equal(each, value.view(8, 8)) for each in found)
    assert len(found) == 3


class TestModificationInPlace:
    """Autograd refuses what was modified after it was saved; behind hooks it does not look."""

    def run(self, count, smallest, *functions):
        layers = [Function(function) for function in functions]
        x = torch.randn(4, requires_grad=True)
        return ActivationOffload(layers, count, LateHost(), smallest).run(x)

    @pytest.mark.parametrize("smallest", [1, 1 << 20])
    @pytest.mark.parametrize("when", [0, 1])
    def test_is_refused_in_the_layer_and_while_it_is_copied(self, when, smallest):
        kept = []

        def save(x):
            kept.append(x * 2)
            y = kept[0].exp() * kept[0]
            return kept[0].mul_(2) + y if when == 0 else y

        def after(x):
            if when == 1:
                with torch.no_grad():
                    kept[0].mul_(2)
            return x.clone()

        y = self.run(1, smallest, save, after)
        with pytest.raises(RuntimeError, match="was modified in place"):
            y.sum().backward()

    def test_leaves_the_copy_as_it_was_saved_later(self):
        kept = []

        def save(x):
            kept.append(x * 2)
            return kept[0].square()

        y = self.run(1, 1, save, torch.clone)
        saved = kept[0].detach().clone()
        with torch.no_grad():
            kept[0].zero_()
        (gradient,) = torch.autograd.grad(y.sum(), kept[0])
        assert torch.equal(gradient, 2 * saved)
