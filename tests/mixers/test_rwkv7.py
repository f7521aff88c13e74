"""RWKV-7 against its equations, written out in float64 token by token (BlinkDL/RWKV-LM, RWKV-v7): layers that share the
values of the first."""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.stage import Stage

WIDTH, HEADS, VOCAB, SEQ_LEN = 16, 2, 32, 40
TIME = {"type": "rwkv7", "head_dim": 8, "decay_rank": 3, "rate_rank": 4, "gate_rank": 5, "value_rank": 2,
        "chunk_size": 16}  # fmt: skip
CHANNEL = {"type": "rwkv6_channel", "ffn_hidden_size": 24, "receptance": False}


def config_of(pattern, **keys):
    blocks = {"time": {**TIME, **keys}, "channel": CHANNEL, "attn": {"type": "attention", "num_heads": 2}}
    return build({"hidden_size": WIDTH, "vocab_size": VOCAB, "blocks": blocks, "pattern": pattern}, ModelConfig)


def built(pattern, **keys):
    """A model whose parameters are all random and large."""
    config = config_of(pattern, **keys)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def rms(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def shifted(x):
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def time_mixing(x, w, v_first):
    """x [s, b, h] -> the same, and the values of the first layer."""
    xx = shifted(x) - x
    r, w_, k, v, a, g = (x + xx * w[f"mix_{name}"] for name in ("receptance", "decay", "key", "value", "rate", "gate"))
    xv = v
    r, k, v = r @ w["receptance_weight"].T, k @ w["key_weight"].T, v @ w["value_weight"].T
    decay = -F.softplus(-(w["decay_base"] + torch.tanh(w_ @ w["decay_down"].T) @ w["decay_up"].T)) - 0.5
    if v_first is None:
        v_first = v
    elif "value_down" in w:
        v = v + (v_first - v) * torch.sigmoid(w["value_base"] + (xv @ w["value_down"].T) @ w["value_up"].T)
    a = torch.sigmoid(w["rate_base"] + (a @ w["rate_down"].T) @ w["rate_up"].T)
    g = torch.sigmoid(g @ w["gate_down"].T) @ w["gate_up"].T
    heads = lambda t: t.unflatten(-1, (HEADS, -1))  # noqa: E731
    kk = F.normalize(heads(k * w["key_scale"]), dim=-1)
    k = k * (1 + (a - 1) * w["key_rate"])
    r, decay, k, v, a = (heads(t) for t in (r, torch.exp(-torch.exp(decay)), k, v, a))
    state, outputs = x.new_zeros(x.shape[1], HEADS, WIDTH // HEADS, WIDTH // HEADS), []  # values x keys, as published
    for t in range(len(x)):
        removed = torch.einsum("bhij,bhj,bhl->bhil", state, -kk[t], kk[t] * a[t])
        state = state * decay[t].unsqueeze(-2) + removed + torch.einsum("bhi,bhj->bhij", v[t], k[t])
        outputs.append(torch.einsum("bhij,bhj->bhi", state, r[t]))
    y = torch.stack(outputs).flatten(2)
    y = F.group_norm(y.flatten(0, 1), HEADS, w["norm_weight"], w["norm_bias"], eps=WIDTH // HEADS * 1e-5).view_as(x)
    bonus = (r * k * heads(w["current_bonus"])).sum(-1, keepdim=True) * v
    return ((y + bonus.flatten(2)) * g) @ w["out_proj.weight"].T, v_first


def channel_mixing(x, w):
    mixed = x + (shifted(x) - x) * w["mix_key"]
    return torch.relu(mixed @ w["key_weight"].T) ** 2 @ w["value.weight"].T


def published(parameters, pattern, tokens):
    """Logits [b, s, v] of token ids [b, s]."""
    x, v_first = parameters["embedding.weight"][tokens].transpose(0, 1), None
    for i, name in enumerate(pattern.split()):
        prefix = f"layers.{i}.mixer."
        w = {key.removeprefix(prefix): value for key, value in parameters.items() if key.startswith(prefix)}
        normed = rms(x, parameters[f"layers.{i}.norm.weight"])
        if name == "time":
            y, v_first = time_mixing(normed, w, v_first)
        else:
            y = channel_mixing(normed, w)
        x = x + y
    return (rms(x, parameters["final_norm.weight"]) @ parameters["head.weight"].T).transpose(0, 1)


@pytest.mark.parametrize("keys", [{}, {"value_residual": False, "value_rank": None}])
def test_logits_and_gradients_are_those_of_the_published_equations(keys):
    """Logits to 1e-4 and gradients to 1e-3 of their largest magnitude, with two layers after the first."""
    pattern = "time channel time channel time"
    model = built(pattern, **keys)
    wide = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    tokens, labels = torch.randint(VOCAB, (2, 2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    logits, expected = model.logits(tokens), published(wide, pattern, tokens)
    assert expected.abs().max() > 1
    bound = 1e-4 * float(expected.detach().abs().max())
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=bound)
    for each in (logits, expected):
        F.cross_entropy(each.flatten(0, 1), labels.flatten()).backward()
    unused = {name for name, value in wide.items() if value.grad is None}
    assert unused == {name for name in wide if ".0.mixer.value_" in name and not name.endswith("_weight")}
    for name, parameter in model.named_parameters():
        if name in unused:  # the first layer mixes its values with themselves
            assert not parameter.grad.any()
            continue
        bound = 1e-3 * float(wide[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad.double(), wide[name].grad, rtol=0, atol=bound, msg=name)


@torch.no_grad()
def test_prompts_and_steps_of_layers_that_share_values_give_what_the_whole_sequence_gives():
    model = built("time attn time channel time")
    tokens = torch.randint(VOCAB, (2, 150), generator=torch.Generator().manual_seed(1))
    whole, state = model.logits(tokens), model.initial_state(2)
    read, state = model.prefill(tokens[:, :70], state, all_logits=True)
    steps = []
    for t in range(70, 150):
        logits, state = model.step(tokens[:, t], state)
        steps.append(logits)
    bound = 1e-4 * float(whole.abs().max())
    torch.testing.assert_close(torch.cat([read, torch.stack(steps, 1)], 1), whole, rtol=0, atol=bound)
    one, state = [], model.initial_state(2)
    for t in range(150):
        logits, state = model.step(tokens[:, t], state)
        one.append(logits)
    torch.testing.assert_close(torch.stack(one, 1), whole, rtol=0, atol=bound)


@pytest.mark.parametrize("keys", [{}, {"value_residual": False, "value_rank": None}])
def test_parameters_and_states_are_those_declared(keys):
    config, model = config_of("time channel time", **keys), built("time channel time", **keys)
    assert describe(config, 64).total == sum(parameter.numel() for parameter in model.parameters())
    _, state = model.prefill(torch.zeros(1, 20, dtype=torch.long), model.initial_state(1))
    assert state[0].heads.numel() == config.blocks["time"].state_size(1 << 20) == HEADS * (WIDTH // HEADS) ** 2


def test_ranks_are_those_that_the_authors_suggest():
    config = build(
        {"hidden_size": 4096, "vocab_size": 64, "blocks": {"x": {"type": "rwkv7"}}, "pattern": "x"}, ModelConfig
    )
    ranks = {name: config.blocks["x"].rank(name) for name in ("decay", "rate", "gate", "value")}
    assert ranks == {"decay": 160, "rate": 160, "gate": 320, "value": 96}


def test_decays_begin_as_the_authors_code_draws_them():
    config = config_of("time")
    spec = config.blocks["time"].tensors()["decay_base"]
    z = torch.tensor([(n % 8 - 3.5) / 3.5 for n in range(WIDTH)])
    expected = -6 + 6 * torch.arange(WIDTH) / (WIDTH - 1) + 0.5 + 2.5 * z * z.abs()
    torch.testing.assert_close(spec.init(spec.shape, torch.Generator()), expected)
    strongest = -math.exp(-0.5) * torch.sigmoid(expected).max()
    assert strongest * 64 > -40


def test_a_stage_of_later_layers_reads_the_first_values():
    """Cut anywhere, with what travels between the stages packed in one tensor."""
    pattern = "time channel time time"
    model, tokens = built(pattern), torch.randint(VOCAB, (1, SEQ_LEN))
    whole = model.logits(tokens)
    config = config_of(pattern)
    for cut in (1, 2, 3):
        stages = [LanguageModel(config, TorchBackend(), stage) for stage in (Stage(0, 2, 0, cut), Stage(1, 2, cut, 4))]
        for stage in stages:
            stage.load_state_dict({name: model.state_dict()[name] for name in stage.state_dict()})
        stages[1].set_input_tensor([stages[0](tokens)])
        torch.testing.assert_close(stages[1].logits(tokens), whole)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head_dim": 5}, "head_dim = 5: expected a divisor of hidden_size 16"),
        ({"chunk_size": 128}, "chunk_size = 128: expected"),
        ({"chunk_size": 48}, "chunk_size = 48: expected a power of two"),
        ({"value_residual": False}, "value_rank = 2: expected nothing with value_residual false"),
    ],
)
def test_settings_that_cannot_work_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        config_of("time", **keys)
