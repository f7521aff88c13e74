"""What every primitive owes: one row per primitive."""

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.schema import dispatch
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

PRIMITIVES = {
    "attention": {"num_heads": 4, "num_kv_heads": 2},
    "mamba2": {"head_dim": 16, "state_dim": 8, "num_groups": 2, "chunk_size": 8},
    "swiglu": {"ffn_hidden_size": 48},
    "mlp": {"ffn_hidden_size": 48, "bias": True},
}
WIDTH = 32


def model_config(primitive):
    blocks = {"x": {"type": primitive, **PRIMITIVES[primitive]}}
    return ModelConfig.model_validate({"hidden_size": WIDTH, "vocab_size": 64, "blocks": blocks, "pattern": "x"})


def built(primitive, seed=0):
    config = model_config(primitive)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed)
    return model


def test_every_primitive_has_a_row_here():
    assert PRIMITIVES.keys() == MIXERS.keys()


@pytest.mark.parametrize("primitive", PRIMITIVES)
class TestPrimitive:
    def test_declares_exactly_the_parameters_of_its_module(self, primitive):
        config = dispatch({"type": primitive, "hidden_size": WIDTH, **PRIMITIVES[primitive]}, MIXERS)
        module = config.build(TorchBackend())
        declared = {name: spec.shape for name, spec in config.tensors().items()}
        assert {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} == declared

    def test_maps_s_b_h_to_s_b_h(self, primitive):
        mixer = built(primitive).layers["0"].mixer
        assert mixer(torch.randn(7, 3, WIDTH)).shape == (7, 3, WIDTH)

    def test_does_not_look_ahead(self, primitive):
        mixer = built(primitive).layers["0"].mixer
        x = torch.randn(20, 2, WIDTH, generator=torch.Generator().manual_seed(0))
        changed = x.clone()
        changed[12] += 1
        before, after = mixer(x), mixer(changed)
        torch.testing.assert_close(before[:12], after[:12], atol=1e-6, rtol=0)
        assert not torch.allclose(before[12], after[12], atol=1e-4)

    @pytest.mark.filterwarnings("error")
    def test_works_under_vmap_over_stacked_models(self, primitive):
        """Warnings are errors: an operation without a batching rule warns that it loops."""
        assert MIXERS[primitive].capabilities.vmap
        models = [built(primitive, seed) for seed in range(3)]
        parameters, buffers = stack_module_state(models)
        tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))

        def loss(parameters, buffers):
            nll, _ = functional_call(models[0], (parameters, buffers), (tokens, tokens.roll(-1, 1)))
            return nll.mean()

        gradients, losses = vmap(torch.func.grad_and_value(loss))(parameters, buffers)
        for i, model in enumerate(models):
            nll, _ = model(tokens, tokens.roll(-1, 1))
            nll.mean().backward()
            torch.testing.assert_close(losses[i], nll.mean().detach(), atol=1e-5, rtol=1e-5)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(gradients[name][i], parameter.grad, atol=1e-5, rtol=1e-4)

    def test_flops_grow_with_the_sequence_and_state_is_a_count(self, primitive):
        config = model_config(primitive).blocks["x"]
        assert config.flops(64) >= 2 * config.flops(32) > 0
        assert config.state_size(64) >= config.state_size(32) >= 0
        assert config.parameters() == config.active_parameters()
