"""Mixers side by side."""

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mixers.contract import Capabilities
from hybridtron.mixers.mlp.config import MLPConfig
from hybridtron.mixers.parallel.config import ParallelMixersConfig
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

WIDTH = 32
BRANCHES = [{"type": "gla", "num_heads": 4}, {"type": "mamba1"}, {"type": "mlp"}]


def model_config(**keys):
    blocks = {"x": {"type": "parallel", "branches": BRANCHES, **keys}}
    return build({"hidden_size": WIDTH, "vocab_size": 64, "blocks": blocks, "pattern": "2*x"}, ModelConfig)


def model(recompute="none", **keys):
    config = model_config(**keys)
    built = LanguageModel(config, TorchBackend(), recompute=lambda block: recompute)
    initialize(built, config, seed=0)
    return built


def outputs(merge):
    """Of the layer's mixer and of each of its branches, and the mixer and its input."""
    mixer = model(merge=merge).layers["0"].mixer
    x = torch.randn(9, 2, WIDTH)
    return mixer(x), [branch(x) for branch in mixer.branches], mixer, x


def test_a_sum():
    y, each, _, _ = outputs("sum")
    torch.testing.assert_close(y, each[0] + each[1] + each[2])


def test_a_mean():
    y, each, _, _ = outputs("mean")
    torch.testing.assert_close(y, (each[0] + each[1] + each[2]) / 3)


def test_a_gate_starts_as_the_mean_and_weighs_by_token():
    y, each, mixer, x = outputs("gate")
    torch.testing.assert_close(y, (each[0] + each[1] + each[2]) / 3)
    with torch.no_grad():
        mixer.gate.copy_(torch.randn(3, WIDTH))
    weights = (x @ mixer.gate.t()).softmax(-1)
    expected = sum(weights[..., i : i + 1] * each[i] for i in range(3))
    torch.testing.assert_close(mixer(x), expected)


def test_parameters_are_named_by_branch():
    names = set(model_config(merge="gate").blocks["x"].tensors())
    assert {"branches.0.in_proj.weight", "branches.1.A_log", "branches.2.up.weight", "gate"} <= names


class OneProcessMLP(MLPConfig):
    capabilities = Capabilities(selective=True, vmap=True)


def test_it_can_do_what_all_branches_can():
    able, unable = (kind(type="mlp", hidden_size=WIDTH) for kind in (MLPConfig, OneProcessMLP))
    assert ParallelMixersConfig(type="parallel", branches=[able, able]).capabilities == MLPConfig.capabilities
    assert ParallelMixersConfig(type="parallel", branches=[able, unable]).capabilities == OneProcessMLP.capabilities


def test_recomputing_the_cores_of_branches_changes_no_gradient():
    tokens = torch.randint(64, (2, 16))
    gradients = []
    for recompute in ("none", "selective"):
        built = model(recompute)
        nll, _ = built(tokens, tokens)
        nll.mean().backward()
        gradients.append({name: parameter.grad for name, parameter in built.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"branches": BRANCHES[:1]}, r"blocks\.x\.branches = .*: expected a length of at least 2"),
        (
            {"branches": [{"type": "gla", "num_heads": 5}, *BRANCHES]},
            r"blocks\.x\.branches\[0\]\.num_heads = 5: .*4, 8",
        ),
        ({"branches": [{"type": "glaa"}, *BRANCHES]}, r"branches\[0\]\.type = 'glaa': .*\(nearest: gla\)"),
        (
            {"branches": [{"type": "mlp", "hidden_size": 3}, *BRANCHES]},
            r"branches\[0\]\.hidden_size = 3: expected nothing",
        ),
        ({"merge": "max"}, r"blocks\.x\.merge = 'max': expected one of sum, mean, gate"),
    ],
)
def test_what_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        model_config(**keys)
