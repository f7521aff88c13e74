"""What every residual topology owes, and those without a published layer against their equations."""

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.checkpoint_reader import expected_shapes
from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.architectures.hybridtron import HYBRIDTRON
from hybridtron.convert.hf.configuration import HybridtronConfig
from hybridtron.convert.hf.modeling import HybridtronForCausalLM
from hybridtron.errors import UserError
from hybridtron.initial_weights import WeightRules, match_weights
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.residual.stream import Packing
from hybridtron.model.stage import cut
from hybridtron.model.tensors import model_tensors, parameter_group

TOPOLOGIES = {
    "plain": {"type": "plain"},
    "parallel": {"type": "parallel"},
    "sandwich": {"type": "sandwich"},
    "hyper_connections": {"type": "hyper_connections", "streams": 3},
    "attention_residuals": {"type": "attention_residuals", "block_size": 2},
}
BLOCKS = {
    "attn": {"type": "attention", "num_heads": 4},
    "mamba": {"type": "mamba2", "head_dim": 8, "state_dim": 4},
    "mlp": {"type": "mlp", "ffn_hidden_size": 24},
}


def config_of(residual, pattern="attn mlp mamba mlp", **keys):
    keys = {"hidden_size": 16, "vocab_size": 32, "init_std": 0.3, "blocks": BLOCKS, "pattern": pattern, **keys}
    return build({**keys, **({"residual": residual} if residual else {})}, ModelConfig)


def built(config, stage=None, width=0, recompute="none", dtype=torch.float32):
    """A model with noise on every parameter, the same in a stage of it."""
    model = LanguageModel(config, TorchBackend(dtype), stage, lambda block: recompute, width)
    initialize(model, config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)
    return model


@pytest.fixture(params=TOPOLOGIES)
def residual(request):
    return TOPOLOGIES[request.param]


@pytest.fixture
def tokens():
    return torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(0))


def gradients(chunks, tokens):
    output = None
    for chunk in chunks:
        chunk.set_input_tensor([output])
        output = chunk(tokens, tokens.roll(-1, 1))
    output[0].mean().backward()
    return {name: parameter.grad for chunk in chunks for name, parameter in chunk.named_parameters()}


@torch.no_grad()
def test_steps_and_prefill_give_the_logits_of_whole_sequences(residual, tokens):
    model = built(config_of(residual))
    expected = model.logits(tokens)
    _, state = model.prefill(tokens[:, :9], model.initial_state(2))
    for start, first in ((9, state), (0, model.initial_state(2))):
        state = first
        for position in range(start, 40):
            logits, state = model.step(tokens[:, position], state)
            torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)


def test_parameters_and_flops_are_those_of_describe(residual, tokens):
    config = config_of(residual)
    model, account = built(config), describe(config, 40)
    assert sum(parameter.numel() for parameter in model.parameters()) == account.total
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        name: spec.shape for name, spec in model_tensors(config).items()
    }
    with FlopCounterMode(display=False) as counter:
        model.logits(tokens)
    assert counter.get_total_flops() == 2 * account.flops_forward
    assert sum(layer.parameters for layer in account.layers) + account.embedding <= account.total


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_stages_train_as_the_whole(residual, tokens, recompute):
    """Four stages of a layer each: groups of layers are cut too."""
    config = config_of(residual)
    stages = cut(config, 4, 40)
    width = Packing(config).widest(stages)
    whole = gradients([built(config)], tokens)
    parts = gradients([built(config, stage, width, recompute) for stage in stages], tokens)
    assert parts.keys() == whole.keys() == model_tensors(config).keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_models_train_under_vmap(residual, tokens):
    config = config_of(residual)
    models = [built(config) for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.1)
    stacked, _ = stack_module_state(models)

    def loss(parameters):
        return functional_call(models[0], parameters, (tokens,)).square().mean()

    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    assert vmap(loss)(stacked).shape == (2,)
    for i, model in enumerate(models):
        model(tokens).square().mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@torch.no_grad()
def test_bf16_is_near_float32(residual, tokens):
    config = config_of(residual, init_std=0.1)
    wide, narrow = built(config), built(config, dtype=torch.bfloat16)
    for name, parameter in wide.named_parameters():
        parameter.copy_(narrow.get_parameter(name))
    expected, found = wide.logits(tokens), narrow.logits(tokens).float()
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_plain_stream_is_that_of_no_key(tokens):
    default, plain = built(config_of(None)), built(config_of({"type": "plain"}))
    assert default.state_dict().keys() == plain.state_dict().keys()
    assert not any("residual" in name for name in plain.state_dict())
    assert torch.equal(default(tokens), plain(tokens))


def run(model, tokens):
    """The embedded tokens, and each layer with its place in the topology, for definitions below."""
    return model.embedding(tokens), list(model.layers.values())


@pytest.mark.parametrize("name", ["plain", "parallel", "attention_residuals"])
def test_what_a_layer_added_is_the_output_of_its_mixer(name):
    model, outputs = built(config_of(TOPOLOGIES[name], residual_multiplier=0.5)), []
    stream = model.begin(torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)))
    for layer in model.layer_list:
        layer.mixer.register_forward_hook(lambda *call: outputs.append(call[-1]))
        before, stream = stream, layer(stream)
        torch.testing.assert_close(layer.residual.added(before.states, stream.states), outputs[-1] * 0.5)


def test_parallel_layers_read_the_same_input(tokens):
    model = built(config_of({"type": "parallel"}, residual_multiplier=0.5))
    x, layers = run(model, tokens)
    assert not any("layers.1.norm" in name or "layers.3.norm" in name for name in model.state_dict())
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        u = first.norm(x)
        x = x + 0.5 * (first.mixer(u) + second.mixer(u))
    torch.testing.assert_close(model(tokens), model.head(model.final_norm(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_attention_residuals_are_those_of_the_equations(tokens, normed):
    """In float64, with a list of block outputs and the partial sum of the current block."""
    residual = {"type": "attention_residuals", "block_size": 2, "normed_values": normed}
    model = built(config_of(residual, "attn mlp mamba mlp attn"), dtype=torch.float64)
    x, layers = run(model, tokens)

    def attend(query, states):
        values = torch.stack(states)
        keys = values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        weights = torch.einsum("d,nsbd->nsb", query, keys).softmax(0)
        return torch.einsum("nsb,nsbd->sbd", weights, keys if normed else values)

    blocks, partial = [], x
    for i, layer in enumerate(layers):
        h = attend(layer.residual.query, [*blocks, partial]) if i else x
        y = layer.mixer(layer.norm(h))
        if i % 2 == 0:
            blocks.append(partial)
            partial = y
        else:
            partial = partial + y
    x = attend(model.residual_end.query, [*blocks, partial])
    torch.testing.assert_close(model(tokens), model.head(model.final_norm(x)))


def test_fresh_attention_residuals_read_the_mean_of_all_states(tokens):
    config = config_of(TOPOLOGIES["attention_residuals"])
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    stream = model.run_layers(model.begin(model.embed(tokens)))
    assert len(stream.states) == 3
    torch.testing.assert_close(model.end(stream), sum(stream.states) / 3)


def test_weights_of_another_topology_are_refused_by_the_names_that_are_missing():
    plain, other = (expected_shapes(model_tensors(config_of(TOPOLOGIES[name]))) for name in ("plain", "sandwich"))
    with pytest.raises(UserError, match=r"layers\.0\.residual\.norm\.weight"):
        match_weights(plain, other, WeightRules())
    with pytest.raises(UserError, match=r"layers\.0\.residual\.norm\.weight"):
        match_weights(other, plain, WeightRules())


@torch.no_grad()
def test_models_of_transformers_keep_the_topology_and_others_cannot_express_it(residual, tokens):
    model = built(config_of(residual))
    theirs = HybridtronForCausalLM(HybridtronConfig(**HYBRIDTRON.to_theirs(config_of(residual))))
    theirs.model.load_state_dict(model.state_dict())
    torch.testing.assert_close(theirs(tokens).logits, model.logits(tokens))
    if residual["type"] != "plain":
        with pytest.raises(UserError, match=r"llama cannot express model\.residual"):
            ARCHITECTURES["llama"].to_theirs(config_of(residual, "attn mlp attn mlp"))


def test_groups_of_parameters_for_clipping():
    config = config_of({"type": "sandwich"})
    assert parameter_group(config, "layers.0.residual.norm.weight") == "norms"
    config = config_of(TOPOLOGIES["hyper_connections"])
    assert parameter_group(config, "layers.0.residual.weight") == "residual"
    assert parameter_group(config, "residual_end.scale") == "residual"
    assert parameter_group(config, "layers.0.mixer.qkv.weight") == "attn"


@pytest.mark.parametrize(
    ("residual", "changes", "expected"),
    [
        ({"type": "paralel"}, {}, "residual.type = 'paralel': expected"),
        (
            {"type": "parallel", "layers": 3},
            {},
            "residual.layers = 3: expected a divisor of the pattern's 4 layers (nearest: 2)",
        ),
        ({"type": "plain", "streams": 4}, {}, "residual.streams"),
        ({"type": "hyper_connections", "streams": 1}, {}, "residual.streams = 1"),
        ({"type": "sandwich"}, {"norm_position": "post"}, "blocks.mlp.norm_position = 'post': expected pre"),
    ],
)
def test_refused_in_one_line(residual, changes, expected):
    with pytest.raises(UserError) as error:
        config_of(residual, blocks={**BLOCKS, "mlp": {**BLOCKS["mlp"], **changes}})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
