"""No op mixes devices: every constant is made where the input lies.

On a machine without a GPU the tensors have no values, which lets an op take a constant from the CPU where CUDA would
not. So every operation of the forward and backward passes is looked at.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.device import choosing_for
from tests.mixers.test_contract import CASES


class OneDevice(TorchDispatchMode):
    """Raise AssertionError for an operation on tensors of two devices; single numbers may come from the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() > 0}
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        assert len(devices) < 2, f"{func} on {[(list(tensor.shape), str(tensor.device)) for tensor in tensors]}"
        out = func(*args, **(kwargs or {}))
        made = {leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0}
        assert copies or "cpu" not in made, f"{func} makes a tensor on the CPU"
        return out


def model_of(block):
    config = {"hidden_size": 32, "vocab_size": 64, "blocks": {"x": block}, "pattern": "x x"}
    return LanguageModel(build(config, ModelConfig), TorchBackend(torch.bfloat16, "meta"))


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_stay_on_one_device(case):
    model, tokens = model_of(CASES[case]), torch.zeros(2, 96, dtype=torch.long, device="meta")
    with choosing_for("cuda"), OneDevice():
        loss, _ = model(tokens, tokens)
        loss.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.device.type == "meta" for parameter in trained)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_generation_stays_on_one_device(case):
    model, tokens = model_of(CASES[case]), torch.zeros(2, dtype=torch.long, device="meta")
    with choosing_for("cuda"), OneDevice():
        state = model.initial_state(2)
        for _ in range(3):
            logits, state = model.step(tokens, state)
    assert logits.device.type == "meta"


@pytest.mark.parametrize("constant", [lambda x: x + torch.ones(4), lambda x: torch.arange(4.0).to(x.device) * x])
def test_a_constant_from_the_cpu_is_found(constant):
    with OneDevice(), pytest.raises(AssertionError):
        constant(torch.zeros(4, device="meta"))
