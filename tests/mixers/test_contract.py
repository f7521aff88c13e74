"""What every primitive owes: one row per primitive."""

import math

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.schema import dispatch
from hybridtron.mixers.implicit_filter.cache import InputCache
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.registry import MIXERS
from hybridtron.mixers.state_rows import reserve, take_rows
from hybridtron.mixers.token_cache import TokenCache
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.moe.attached_loss import attached_losses_scale

PRIMITIVES = {
    "attention": {"num_heads": 4, "num_kv_heads": 2},
    "mla": {"num_heads": 4, "value_dim": 6, "kv_rank": 12, "q_rank": 20, "rotary_dim": 4},
    "linear_attention": {"num_heads": 4, "chunk_size": 8},
    "lightning_attention": {"num_heads": 4, "chunk_size": 16},
    "gla": {"num_heads": 2, "chunk_size": 16},
    "gated_deltanet": {"num_heads": 2, "num_value_heads": 4, "key_dim": 8, "head_dim": 12, "chunk_size": 8},
    "kda": {"num_heads": 2, "key_dim": 8, "head_dim": 12, "chunk_size": 8},
    "mamba1": {"state_dim": 4},
    "mamba2": {"head_dim": 16, "state_dim": 8, "num_groups": 2, "chunk_size": 8},
    "mamba3": {"head_dim": 16, "state_dim": 8, "num_groups": 2, "chunk_size": 8},
    "swiglu": {"ffn_hidden_size": 48},
    "mlp": {"ffn_hidden_size": 48, "bias": True},
    "moe": {"num_experts": 4, "ffn_hidden_size": 24, "shared_ffn_hidden_size": 16, "z_loss": 1e-2},
    "parallel": {
        "branches": [
            {"type": "attention", "num_heads": 4, "window": 6},
            {"type": "mamba2", "head_dim": 16},
            {"type": "hyena", "filter_order": 4},
        ],
        "merge": "gate",
    },
    "short_conv": {"bias": True},
    "hyena": {"expand": 2, "projection_groups": 4, "filter_order": 4, "bias": True},
    "mh_hyena": {"num_heads": 4, "projection_groups": 2, "filter_order": 2},
    "hyena_se": {"num_groups": 4},
    "hyena_mr": {"num_groups": 4, "filter_length": 24},
    "hyena_li": {"num_groups": 8, "filter_order": 4},
    "hyena_experts": {"num_experts": 4, "top_k": 2, "expert_size": 8, "filter_order": 4, "bias": True},
    "rwkv6": {"head_dim": 8, "mix_rank": 4, "decay_rank": 4, "chunk_size": 8},
    "rwkv6_channel": {"ffn_hidden_size": 48},
    "rwkv7": {"head_dim": 16, "decay_rank": 4, "rate_rank": 5, "gate_rank": 6, "value_rank": 3, "chunk_size": 8},
}
VARIANTS = {
    "experts in a latent space and groups": {
        "type": "moe", "num_experts": 8, "top_k": 3, "num_groups": 4, "top_groups": 2, "latent_size": 8,
        "ffn_hidden_size": 24, "shared_ffn_hidden_size": 16, "activation": "relu2", "score": "sqrt_softplus",
    },
    "attention with sinks": {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "sinks": True},
    "attention with a norm and a gate per head": {
        "type": "attention", "num_heads": 4, "num_kv_heads": 2, "qk_norm": "head", "gate": "head",
    },
    "sliding attention with zero-centered norms and gates": {
        "type": "attention", "num_heads": 4, "window": 7, "qk_norm": "head", "qk_norm_zero_centered": True,
        "gate": "element", "qkv_bias": True,
    },
    "attention with norms over all heads": {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "qk_norm": "full"},
    "sliding attention": {"type": "attention", "num_heads": 4, "window": 7, "rotary_fraction": 0.5},
    "sliding attention with sinks": {"type": "attention", "num_heads": 4, "window": 7, "sinks": True},
    "attention with stretched frequencies": {
        "type": "attention", "num_heads": 4,
        "rotary_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "attention with capped scores and normed outputs": {
        "type": "attention", "num_heads": 4, "num_kv_heads": 2, "softcap": 1.5, "output_norm": True,
        "length_scaling": {"type": "inkling", "floor": 16, "scale": 0.5},
    },
    "attention with forget gates": {
        "type": "attention", "num_heads": 4, "num_kv_heads": 2, "forget_gate": True, "rotary_fraction": 0.0,
    },
    "sliding attention with sinks, capped scores and forget gates": {
        "type": "attention", "num_heads": 4, "window": 7, "sinks": True, "softcap": 1.5, "forget_gate": True,
        "gate": "element", "length_scaling": {"type": "llama4", "floor": 16, "scale": 0.5},
    },
    "wide sliding attention": {"type": "attention", "num_heads": 4, "window": 80},
    "latent attention without positions": {"type": "mla", "num_heads": 4, "kv_rank": 12, "rotary": False},
    "latent attention without a shared key": {"type": "mla", "num_heads": 4, "kv_rank": 12, "rotary_dim": 0},
    "linear attention by Taylor": {"type": "linear_attention", "num_heads": 4, "key_dim": 4, "feature_map": "taylor"},
    "linear attention, learned": {
        "type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "normalize": False,
    },
    "linear attention, learned for all heads": {
        "type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "shared_feature_map": True,
    },
    "lightning attention as in RetNet": {
        "type": "lightning_attention", "num_heads": 4, "key_dim": 4, "decay": "retnet", "activation": "none",
        "norm": "head", "gate": "silu", "rotary": True,
    },
    "lightning attention with a constant decay": {
        "type": "lightning_attention", "num_heads": 2, "decay": "constant", "decay_factor": 0.9, "norm": "head",
    },
    "rwkv7 without a value residual": {"type": "rwkv7", "head_dim": 32, "value_residual": False},
    "channel mixing of rwkv7": {"type": "rwkv6_channel", "ffn_hidden_size": 48, "receptance": False},
    "hyena without inner layers": {"type": "hyena", "filter_order": 4, "filter_layers": 0},
    "gated_deltanet with signs": {"type": "gated_deltanet", "num_heads": 4, "allow_negative": True},
    "kda with a safe gate and full ranks": {
        "type": "kda", "num_heads": 2, "decay_rank": 0, "gate_rank": 0, "gate_lower_bound": -5.0, "chunk_size": 16,
    },
    "kda with signs and a full-rank output gate": {
        "type": "kda", "num_heads": 4, "decay_rank": 6, "gate_rank": 0, "allow_negative": True,
    },
    "kda with gates that erase and write": {
        "type": "kda", "num_heads": 2, "head_dim": 12, "erase_gate": True, "write_gate": True, "allow_negative": True,
    },
    "kda with a gate that erases": {"type": "kda", "num_heads": 4, "decay_rank": 6, "erase_gate": True},
    "gated_deltanet with several steps": {
        "type": "gated_deltanet", "num_heads": 2, "num_value_heads": 4, "key_dim": 8, "head_dim": 12, "chunk_size": 8,
        "householder_steps": 3, "allow_negative": True,
    },
    "gated_deltanet with a read-back key": {
        "type": "gated_deltanet", "num_heads": 2, "num_value_heads": 4, "key_dim": 8, "head_dim": 12, "chunk_size": 8,
        "read_back": True, "output_correction": True,
    },
    "mamba1 with plain inner norms": {"type": "mamba1", "state_dim": 4, "inner_norm": "plain", "inner_norm_eps": 1e-3},
    "mamba1 with learned inner norms and biases": {
        "type": "mamba1", "state_dim": 4, "inner_norm": "learned", "proj_bias": True, "conv_bias": False,
    },
    "mamba2 with limited steps and biases": {
        "type": "mamba2", "head_dim": 16, "state_dim": 8, "chunk_size": 8, "proj_bias": True, "conv_bias": False,
        "dt_limit_min": 0.02, "dt_limit_max": 0.05,
    },
    "mamba3 with ranks, norms and heavy tails": {
        "type": "mamba3", "head_dim": 16, "state_dim": 10, "num_groups": 2, "mimo_rank": 3, "chunk_size": 8,
        "rotary_fraction": 1.0, "decay_activation": "heavy_tail", "output_norm": True,
    },
    "short_conv of seven taps that tokens generate": {
        "type": "short_conv", "conv_kernel": 7, "bias": True, "dynamic": True,
    },
    "parallel sum with an MLP": {
        "type": "parallel",
        "branches": [{"type": "gla", "num_heads": 4}, {"type": "swiglu", "ffn_hidden_size": 48}, {"type": "mamba1"}],
    },
}  # fmt: skip
CASES = {**{name: {"type": name, **row} for name, row in PRIMITIVES.items()}, **VARIANTS}
WIDTH = 32
HALF_BOUND = 0.05
STEPS = 150  # caches grow at 64 and 128


def model_config(case):
    """With large weights, so that what a token does to others is no rounding error."""
    return ModelConfig.model_validate(
        {"hidden_size": WIDTH, "vocab_size": 64, "blocks": {"x": CASES[case]}, "pattern": "x", "init_std": 0.2}
    )


def built(primitive, seed=0):
    config = model_config(primitive)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed)
    return model


@torch.no_grad()
def noisy(model):
    """With biases, gates and the like away from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def held(state):
    """The tensors of a state, of caches what they hold."""
    if isinstance(state, TokenCache):
        return list(state.held())
    if isinstance(state, InputCache):
        return held(state.inputs)
    return [state] if torch.is_tensor(state) else [tensor for part in state for tensor in held(part)]


def assert_near(one, other, bound=1e-5):
    """Within the bound, times the largest magnitude where that is above 1."""
    torch.testing.assert_close(one, other, atol=bound * max(1.0, float(other.abs().max())), rtol=0)


def test_every_primitive_has_a_row_here():
    assert PRIMITIVES.keys() == MIXERS.keys()


@pytest.mark.parametrize("primitive", CASES)
class TestPrimitive:
    def test_declares_exactly_the_parameters_of_its_module(self, primitive):
        config = dispatch({"hidden_size": WIDTH, **CASES[primitive]}, MIXERS)
        module = config.build(TorchBackend())
        declared = {name: spec.shape for name, spec in config.tensors().items()}
        assert {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} == declared

    def test_has_the_core_that_can_be_recomputed(self, primitive):
        config = model_config(primitive).blocks["x"]
        mixers = [module for module in built(primitive).modules() if isinstance(module, Mixer)]
        cores = [mixer for mixer in mixers if type(mixer).core is not Mixer.core]
        assert bool(cores) == config.capabilities.selective

    def test_recomputing_the_core_keeps_no_more_and_changes_no_gradient(self, primitive):
        results, kept = [], []
        for recompute in (False, True):
            model = noisy(built(primitive))
            for module in model.modules():
                if isinstance(module, Mixer):
                    module.recompute_core = recompute
            x = torch.randn(40, 2, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
            packed = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, packed=packed: packed.append(t) or t, lambda t: t):
                y = model.layers["0"].mixer(x)
            y.square().sum().backward()
            results.append({name: parameter.grad for name, parameter in model.named_parameters()} | {"x": x.grad})
            kept.append(len(packed))
        sequence = model_config(primitive).blocks["x"].kind == "sequence"
        assert kept[1] < kept[0] if sequence else kept[1] <= kept[0]  # a core of one operation keeps its input anyway
        for name, gradient in results[0].items():
            assert gradient is None or torch.equal(gradient, results[1][name]), name

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

    @torch.no_grad()
    def test_steps_give_what_the_whole_sequence_gives(self, primitive):
        mixer = noisy(built(primitive)).layers["0"].mixer
        x = torch.randn(STEPS, 2, WIDTH, generator=torch.Generator().manual_seed(0))
        whole, state = mixer(x), mixer.initial_state(2)
        for t in range(STEPS):
            y, state = mixer.step(x[t], state)
            torch.testing.assert_close(y, whole[t], atol=1e-4, rtol=1e-4)
        assert whole.abs().max() > 1e-2

    @torch.no_grad()
    def test_steps_in_bfloat16_give_what_the_whole_sequence_gives(self, primitive):
        mixer = noisy(built(primitive)).bfloat16().layers["0"].mixer
        x = torch.randn(STEPS, 2, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
        whole, state, steps = mixer(x), mixer.initial_state(2), []
        for t in range(STEPS):
            y, state = mixer.step(x[t], state)
            steps.append(y)
        assert y.dtype == torch.bfloat16
        assert (torch.stack(steps) - whole).norm() <= HALF_BOUND * whole.norm()

    @torch.no_grad()
    def test_prefill_gives_the_outputs_and_the_state_of_steps(self, primitive):
        mixer = noisy(built(primitive)).layers["0"].mixer
        chunk = getattr(mixer.config, "chunk_size", 64)
        lengths = [1, chunk - 1, chunk, chunk + 1] + [1000] * (primitive in PRIMITIVES)
        x = torch.randn(lengths[-1], 1, WIDTH, generator=torch.Generator().manual_seed(0))
        states, whole, state = {}, [], mixer.initial_state(1)
        for t in range(len(x)):
            y, state = mixer.step(x[t], state)
            whole.append(y)
            if t + 1 in lengths:
                states[t + 1] = take_rows(state, torch.tensor([0]))
        own = type(mixer).prefill is not Mixer.prefill or type(mixer).prefill_core is not Mixer.prefill_core
        assert own or mixer.config.kind == "channel"  # neither reads token after token
        for length in lengths:
            y, state = mixer.prefill(x[:length], mixer.initial_state(1))
            assert_near(y, torch.stack(whole[:length]))
            for one, other in zip(held(state), held(states[length]), strict=True):
                # A step of hyena_li multiplies by rounded decays, whose error grows with the tokens.
                assert_near(one, other, 2e-5 if primitive == "hyena_li" else 1e-5)

    @torch.no_grad()
    def test_prefill_in_pieces_and_a_step_after_it_give_what_the_whole_sequence_gives(self, primitive):
        mixer = noisy(built(primitive)).layers["0"].mixer
        x = torch.randn(STEPS, 2, WIDTH, generator=torch.Generator().manual_seed(0))
        whole = mixer(x)
        for pieces in ([STEPS - 1], [1, 1, 3, STEPS - 6], [60, 5, STEPS - 66], [50, 50, STEPS - 101]):
            outputs, state = [], reserve(mixer.initial_state(2), STEPS)
            for piece in x[:-1].split(pieces):
                y, state = mixer.prefill(piece, state)
                outputs.append(y)
            y, state = mixer.step(x[-1], state)
            assert_near(torch.cat([*outputs, y.unsqueeze(0)]), whole)

    def test_gradients_go_back_through_pieces_and_a_step(self, primitive):
        """Without the losses that balance experts, which are means over the tokens of a call."""
        mixer = noisy(built(primitive)).layers["0"].mixer
        x = torch.randn(30, 2, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
        outputs, state = [], mixer.initial_state(2)
        with attached_losses_scale(0.0):
            for piece in x[:-1].split([11, 12, 6]):
                y, state = mixer.prefill(piece, state)
                outputs.append(y)
            y, _ = mixer.step(x[-1], state)
            whole = mixer(x)
        trained = [parameter for parameter in mixer.parameters() if parameter.requires_grad]
        gradients = (
            torch.autograd.grad(y.square().sum(), [x, *trained]) for y in (torch.cat([*outputs, y.unsqueeze(0)]), whole)
        )
        for one, other in zip(*gradients, strict=True):
            assert_near(one, other)

    @torch.no_grad()
    def test_prefill_in_bfloat16_gives_what_the_whole_sequence_gives(self, primitive):
        mixer = noisy(built(primitive)).bfloat16().layers["0"].mixer
        x = torch.randn(STEPS, 2, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
        whole, state, outputs = mixer(x), mixer.initial_state(2), []
        for piece in x.split([70, 50, STEPS - 120]):
            y, state = mixer.prefill(piece, state)
            outputs.append(y)
        assert y.dtype == torch.bfloat16
        assert (torch.cat(outputs) - whole).norm() <= HALF_BOUND * whole.norm()

    def test_in_bfloat16_outputs_and_gradients_are_near_those_of_float32(self, primitive):
        """With the same rounded weights and inputs; distances relative to the size of the whole tensor."""
        half, wide = noisy(built(primitive)).bfloat16().layers["0"].mixer, noisy(built(primitive)).layers["0"].mixer
        wide.load_state_dict(half.state_dict())
        x = torch.randn(STEPS, 2, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
        results = []
        for mixer, inputs in ((half, x), (wide, x.float())):
            inputs.requires_grad_()
            y = mixer(inputs)
            trained = [parameter for parameter in mixer.parameters() if parameter.requires_grad]
            assert y.dtype == inputs.dtype
            results.append((y, *torch.autograd.grad(y.square().sum(), [inputs, *trained])))
        for near, exact in zip(*results, strict=True):
            assert (near - exact).norm() <= HALF_BOUND * exact.norm() + 1e-4

    @pytest.mark.filterwarnings("error")
    def test_works_under_vmap_over_stacked_models(self, primitive):
        """Warnings are errors: an operation without a batching rule warns that it loops."""
        assert model_config(primitive).blocks["x"].capabilities.vmap
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

    def test_its_state_has_the_declared_bytes(self, primitive):
        """Of several tensors the widest is the state: beside a recurrent one lie inputs of a short convolution.

        What a cache holds of a token may differ in width.
        """
        config = model_config(primitive).blocks["x"]
        module = LanguageModel(model_config(primitive), TorchBackend(torch.bfloat16)).layers["0"].mixer
        for part, mixer in zip(config.mixers, getattr(module, "branches", [module]), strict=True):
            state = mixer.initial_state(1)
            tensors = [leaf for leaf in tree_leaves(state) if torch.is_tensor(leaf)]
            width = max((tensor.element_size() for tensor in tensors), default=0)
            if isinstance(state, TokenCache):
                elements = [math.prod(t.shape[:-2]) * t.shape[-1] for t in tensors]
                width = sum(n * t.element_size() for n, t in zip(elements, tensors, strict=True)) / sum(elements)
            assert part.state_bytes(64, 2) == part.state_size(64) * width

    def test_flops_grow_with_the_sequence_and_state_is_a_count(self, primitive):
        config = model_config(primitive).blocks["x"]
        assert config.flops(64) > 1.9 * config.flops(32) > 0  # sequences share the transforms of filters
        assert config.state_size(64) >= config.state_size(32) >= 0
        assert config.parameters() >= config.active_parameters() > 0
