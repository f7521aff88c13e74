"""MAD on CUDA: cells trained in one pass, one by one, and on a CPU reach the same weights and scores."""

import functools

import pytest
import torch

import hybridtron as ht
from hybridtron.mad import from_layers, generate
from hybridtron.mad.models.proxy_model import initial_values
from hybridtron.mad.training.adamw import StackedAdamW
from hybridtron.mad.training.stack import Stack, can_stack
from hybridtron.ops.cuda_graph import Recorder
from tests.gpu.comparison import distance

pytestmark = pytest.mark.gpu

LAYERS = {
    "attention": ["mh-attention", "swiglu"],
    "mamba": ["mamba", "mlp"],
    "hyena": ["mh-hyena", "moe-mlp"],
    "linear attention": ["mh-linear-attention", "swiglu"],
}
STEPS, CELLS = 5, 3
WEIGHTS, LOSSES = 1e-2, 5e-3  # Adam's first steps magnify what rounding does to tiny gradients


def trained(layers, device, one_pass):
    """Return the weights [cells, parameters] after some steps at three learning rates, and the last losses [cells]."""
    arrays = generate("in-context-recall", {}, "train", seed=0, num_examples=16)
    ids, targets = (torch.from_numpy(array).long().to(device) for array in arrays)
    config = from_layers(layers).model(16, ids.shape[1])
    assert can_stack(config)
    values = [initial_values(config, False, seed) for seed in range(CELLS)]
    stack = Stack(config, False, values, device=str(device), one_pass=one_pass)
    optimizer, lr = StackedAdamW(stack.flat, (0.9, 0.98)), torch.tensor([[1e-4], [5e-4], [1e-3]], device=device)
    for _ in range(STEPS):
        losses, gradients = stack.gradients(ids, targets)
        optimizer.step(stack.flat, gradients, lr, torch.zeros_like(lr))
    return stack.flat, losses


@functools.cache
def on_cpu(name):
    return trained(LAYERS[name], "cpu", one_pass=False)


@pytest.mark.parametrize("one_pass", [True, False], ids=["in one pass", "one by one"])
@pytest.mark.parametrize("name", LAYERS)
def test_cells_reach_the_weights_of_a_cpu(cuda, name, one_pass):
    (weights, losses), (expected, expected_losses) = trained(LAYERS[name], cuda, one_pass), on_cpu(name)
    assert distance(weights, expected) < WEIGHTS
    assert distance(losses, expected_losses) < LOSSES


def test_a_small_setting_is_scored(cuda):
    score = ht.mad.score("mh-attention swiglu", preset="smoke", tasks="in-context-recall", device=str(cuda))
    assert score.overall
    assert all(0 <= estimate.mean <= 1 for estimate in score.overall.values())


@pytest.mark.usefixtures("needs_cuda")
def test_passes_of_all_cells_are_recorded_again_when_one_has_ended(cuda):
    arrays = generate("in-context-recall", {}, "train", seed=0, num_examples=16)
    ids, targets = (torch.from_numpy(array).long().to(cuda) for array in arrays)
    config = from_layers(LAYERS["mamba"]).model(16, ids.shape[1])
    values = [initial_values(config, False, seed) for seed in range(CELLS)]
    recorded, plain = (Stack(config, False, values, device=str(cuda), one_pass=each) for each in (True, False))
    for stack in (recorded, plain):
        stack.gradients(ids, targets)
        stack.keep(torch.tensor([2, 0], device=cuda))
    for some in (slice(None), slice(8), slice(8, None), slice(None)):
        losses, gradients = recorded.gradients(ids[some], targets[some])
        expected_losses, expected = plain.gradients(ids[some], targets[some])
        assert distance(losses, expected_losses) < 1e-4
        assert distance(gradients, expected) < 1e-3
        for stack in (recorded, plain):
            stack.flat.mul_(0.9)  # where the recordings read it
    assert len(recorded._recorder.recordings) == 2  # of 16 examples and of 8


@pytest.mark.usefixtures("needs_cuda")
def test_a_function_that_waits_for_the_device_is_called_as_it_is(cuda, caplog):
    recorder, stream, x = Recorder(), torch.cuda.current_stream(), torch.arange(3.0, device=cuda)
    for _ in range(2):
        (y,) = recorder.run(lambda x: (x * x.sum().item(),), x)
        assert y.tolist() == [0, 3, 6]
        assert torch.cuda.current_stream() == stream
        recorder.forget()
    assert len(caplog.records) == 1
