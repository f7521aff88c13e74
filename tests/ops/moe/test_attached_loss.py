import torch
from torch.utils.checkpoint import checkpoint

from hybridtron.ops.moe.attached_loss import attach_loss, attached_losses_scale
from tests.ops.compare import leaf


def layer(x):
    """Its output is 2x, its own loss the sum of x cubed."""
    return attach_loss(2 * x, x.pow(3).sum())


def test_the_output_is_as_it_was():
    x = leaf(3, 4)
    torch.testing.assert_close(layer(x), 2 * x)


def test_the_gradient_is_that_of_both_losses():
    x = leaf(3, 4)
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x + 3 * x.square())


def test_the_attached_loss_does_not_depend_on_what_the_output_is_for():
    x = leaf(3, 4)
    (0 * layer(x).sum()).backward()
    torch.testing.assert_close(x.grad, 3 * x.square())


def test_it_counts_as_often_as_is_said():
    x = leaf(3, 4)
    with attached_losses_scale(0.25):
        layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x + 0.75 * x.square())
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 16 * x + 3.75 * x.square())


def test_it_counts_once_where_activations_are_computed_again():
    x = leaf(3, 4)
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(x.grad, 8 * x + 3 * x.square())


def test_under_transforms():
    x = torch.randn(3, 4)
    gradients = torch.func.vmap(torch.func.grad(lambda x: layer(x).square().sum()))(x)
    torch.testing.assert_close(gradients, 8 * x + 3 * x.square())


def test_without_gradients_nothing_is_attached():
    with torch.no_grad():
        assert not layer(leaf(3, 4)).requires_grad
