"""Weight gradients that the product adds to megatron-core's buffer, against those that autograd makes."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.faults.rank_callback import FaultCallback
from hybridtron.ops.dispatch import OPERATIONS
from hybridtron.training.build import build_engine
from tests.distributed.layouts import DO_OVERLAP, OVERLAP, Layout
from tests.distributed.walk import micro_batches, run_config
from tests.ops.test_weight_gradient import AS_DOCUMENTED, apex

__all__ = ["apex"]  # a fixture

HERE = Environment(0, 1, 0, None, "single")
LINEARS = ["transformer", "half", "tensorwise", "tied", "moe", "states", "latents", "further", "hyper", "packed"]
LAYOUTS = [(model, {}) for model in LINEARS]
LAYOUTS += [("tied", OVERLAP), ("further", DO_OVERLAP), ("hybrid", {"recompute": "full"})]
LAYOUTS += [("latents", {"recompute": "selective"})]


def record(monkeypatch):
    """Return the list to which each sum of a weight gradient adds the buffer and copies of the factors."""
    seen = []
    operation = OPERATIONS["weight_gradient"]

    def recording(add):
        def call(total, grad, x):
            seen.append((total, grad.clone(), x.clone()))
            add(total, grad, x)

        return call

    entries = tuple(one._replace(function=recording(one.function)) for one in operation.implementations)
    monkeypatch.setitem(OPERATIONS, "weight_gradient", operation._replace(implementations=entries))
    return seen


def sums_of(seen):
    """Return, for each buffer by its address, the sum of the products of what was recorded, in float64."""
    sums = {}
    for total, grad, x in seen:
        sums[total.data_ptr()] = sums.get(total.data_ptr(), 0) + grad.double().t() @ x.double()
    return sums


def gradients(model, parallel, in_the_buffer=True):
    """Return the gradients of a step in one process, without clipping."""
    config = run_config(Layout(model, parallel=parallel))
    config = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"clip_grad": 0.0, "clip_groups": {}})}
    )
    with process_groups(config.parallel, HERE) as parallel_context, pytest.MonkeyPatch.context() as patch:
        from hybridtron.backends.megatron import linear  # imports megatron-core, which process_groups must come before

        if not in_the_buffer:
            patch.setattr(linear, "main_grad_of", lambda weight: None)
        engine, (chunk,) = build_engine(config, parallel_context)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?i).*sparse")
            assert engine.train_step(micro_batches(0, parallel_context, config.data.isolates), lr=1e-2).applied
        return {name: p.main_grad.clone() for name, p in chunk.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("model", "parallel"), LAYOUTS, ids=str)
def test_they_are_those_of_autograd(monkeypatch, model, parallel):
    seen = record(monkeypatch)
    found = gradients(model, parallel)
    count, narrow = len(seen), any(x.dtype != torch.float32 for _, _, x in seen)
    expected = gradients(model, parallel, in_the_buffer=False)
    assert 0 < count == len(seen)
    for name, gradient in found.items():
        distance, size = (gradient - expected[name]).norm(), expected[name].norm()
        assert distance <= (1e-3 if narrow else 2e-6) * size.clamp_min(1e-6), name


def test_narrow_factors_of_all_micro_batches_add_up_in_float32(monkeypatch, apex):
    """Were they rounded to bfloat16 first, the sums would be off by 1e-3."""
    apex(AS_DOCUMENTED)
    seen = record(monkeypatch)
    found = gradients("half", {})
    sums = sums_of(seen)
    assert len(sums) > 5
    assert len(seen) == 4 * len(sums)  # micro-batches
    for each in sums.values():
        nearest = min(
            (gradient - each).norm() / each.norm() for gradient in found.values() if gradient.shape == each.shape
        )
        assert nearest <= 1e-6, each.shape


@pytest.fixture
def product():
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():
        from hybridtron.backends.megatron.linear import parallel_linear
    return parallel_linear


@pytest.mark.parametrize("index", range(3))
def test_a_weight_without_a_buffer_has_an_ordinary_gradient(product, index):
    inputs = [torch.randn(shape, requires_grad=index == i) for i, shape in enumerate([(5, 2, 8), (6, 8), (6,)])]
    direction = torch.randn(2, 5, 6).transpose(0, 1)
    found, expected = (
        torch.autograd.grad(op(*inputs), inputs[index], direction)[0] for op in (product, nn.functional.linear)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sparse_first", [False, True])
def test_other_uses_of_a_weight_keep_their_gradient(product, sparse_first):
    weight = nn.Parameter(torch.randn(6, 8))
    weight.main_grad = torch.zeros(6, 8)
    tokens, x = torch.tensor([1, 3, 3]), torch.randn(5, 2, 8)
    uses = [nn.functional.embedding(tokens, weight).sum(), product(x, weight).sum()]
    (uses[sparse_first] + uses[not sparse_first]).backward()
    torch.testing.assert_close(weight.main_grad, x.sum((0, 1)).expand(6, 8))
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 1, 0, 2, 0, 0])[:, None].expand(6, 8))


def test_a_fault_spoils_a_weight_whose_gradient_is_in_the_buffer(product):
    linear = nn.Linear(8, 6, bias=False)
    linear.weight.main_grad = torch.zeros(6, 8)
    agent = SimpleNamespace(non_finite_now=lambda step: True, before_step=lambda step: None)
    FaultCallback(agent).before_step(SimpleNamespace(state=SimpleNamespace(step=0), chunks=[linear]))
    product(torch.ones(5, 2, 8), linear.weight).sum().backward()
    assert linear.weight.main_grad.isnan().all()
