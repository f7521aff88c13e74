"""Initial values: a function of the seed and the name alone."""

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.model import initialize as initializing
from hybridtron.model.initialize import initial_value, initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import Init, PackedPart, Shard, Shards, TensorSpec
from tests.training.runs import resolved_tiny


def values(seed=0, **model):
    return all_values(resolved_tiny(**model).model, seed)


def all_values(config, seed):
    return {name: initial_value(config, name, spec, seed) for name, spec in model_tensors(config).items()}


def test_another_seed_gives_other_weights_and_the_same_one_the_same():
    first, again, other = values(1), values(1), values(2)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_equal_layers_differ():
    first = values(pattern="2*mlp")
    assert not torch.equal(first["layers.0.mixer.down.weight"], first["layers.1.mixer.down.weight"])


def test_projections_into_the_residual_stream_shrink_with_depth():
    deep = values(pattern="16*ffn")
    assert abs(deep["layers.3.mixer.up.weight"].std() / 0.02 - 1) < 0.1
    assert abs(deep["layers.3.mixer.down.weight"].std() / (0.02 / 4) - 1) < 0.1


def test_mamba2_starts_with_step_sizes_and_decays_in_range():
    mixer = {name.split(".")[-1]: tensor for name, tensor in values(pattern="mamba").items() if "mixer" in name}
    steps = torch.nn.functional.softplus(mixer["dt_bias"])
    assert steps.min() > 0.99e-4
    assert steps.max() <= 0.1001
    assert mixer["A_log"].exp().min() >= 1
    assert mixer["A_log"].exp().max() <= 16.001
    assert (mixer["D"] == 1).all()


def test_mamba_starts_with_the_decays_of_one_two_three():
    blocks = {**resolved_tiny().model.model_dump()["blocks"], "selective": {"type": "mamba1", "state_dim": 5}}
    mixer = {name.split(".")[-1]: tensor for name, tensor in values(blocks=blocks, pattern="selective").items()}
    torch.testing.assert_close(mixer["A_log"].exp(), torch.arange(1.0, 6.0).expand(mixer["A_log"].shape))
    steps = torch.nn.functional.softplus(mixer["dt_bias"])
    assert steps.min() > 0.99e-4
    assert steps.max() <= 0.1001


def test_a_model_is_filled_with_every_value():
    config = resolved_tiny().model
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=3)
    expected = all_values(config, 3)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in parameters.items())


def test_undecayed_parameters_are_norms_biases_and_the_scan_s_own():
    blocks = {**resolved_tiny().model.model_dump()["blocks"]}
    blocks["attn"] = {"type": "attention", "num_heads": 4, "qkv_bias": True}
    undecayed = {name for name, spec in model_tensors(resolved_tiny(blocks=blocks).model).items() if not spec.decay}
    last = {name.removeprefix("layers.").split(".", 1)[-1] for name in undecayed}
    assert last == {
        "norm.weight",
        "weight",  # the final norm's
        "mixer.qkv.bias",
        "mixer.conv_bias",
        "mixer.dt_bias",
        "mixer.A_log",
        "mixer.D",
        "mixer.norm_weight",
    }


@pytest.mark.parametrize("kind", ["input", "output", "embedding", "normal", "uniform", "log_uniform", "ones", "zeros"])
@pytest.mark.parametrize("shape", [(3,), (97_001,), (1200, 64), (1201, 77), (40_001, 3), (5, 130, 130)])
def test_blocks_give_the_values_of_one_draw(kind, shape):
    config, init = resolved_tiny().model, Init(kind, 0.5, 2.0)
    whole = initializing._draw(init, shape, initializing._generator(3, "name"), config)
    assert torch.equal(initial_value(config, "name", TensorSpec(shape, init), 3), whole)


@pytest.mark.parametrize("kind", ["input", "uniform"])
@pytest.mark.parametrize(("shape", "axis"), [((1200, 77), 0), ((1201, 120), 1), ((4, 200, 130), 1), ((4, 60, 200), 2)])
def test_each_shard_holds_its_pieces_of_the_whole(kind, shape, axis):
    config, length = resolved_tiny().model, shape[axis]
    parts = (PackedPart("a", length // 10), PackedPart("b", length - length // 10))
    spec = TensorSpec(shape, Init(kind, -1.0, 1.0), parts, axis, experts=len(shape) == 3)
    whole = initial_value(config, "name", spec, 3)
    for rank in range(2):
        shard = Shard(rank, 2)
        shards = Shards(shard, shard, Shard(1 - rank, 2)) if spec.experts else Shards(shard)
        assert torch.equal(initial_value(config, "name", spec, 3, shards), spec.shard(whole, shards))


def test_threads_change_no_value(monkeypatch):
    config = resolved_tiny().model
    model = LanguageModel(config, TorchBackend())
    monkeypatch.setattr(initializing, "SMALL_MODEL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    initialize(model, config, seed=3)
    expected = all_values(config, 3)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
