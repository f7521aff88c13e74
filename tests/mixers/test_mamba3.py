"""Mamba-3 gives what the paper's equations give (arXiv 2603.15569), written out token by token in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.schema import dispatch
from hybridtron.mixers.registry import MIXERS

SEQ_LEN, BATCH, WIDTH, HEADS, HEAD_DIM, STATE = 40, 2, 12, 4, 6, 8
PAIRED = [index for pair in zip(range(STATE // 2), range(STATE // 2, STATE), strict=True) for index in pair]


def built(**keys):
    torch.manual_seed(0)
    block = {"type": "mamba3", "hidden_size": WIDTH, "head_dim": HEAD_DIM, "state_dim": STATE, "chunk_size": 16, **keys}
    mixer = dispatch(block, MIXERS).build(TorchBackend())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 0.5)
    return mixer


def rotated(x, angles):
    """Rotate neighbouring elements of x [b, h, r, n] by angles [b, h, k], as the paper writes it."""
    x = x[..., PAIRED].unflatten(-1, (-1, 2))
    rest = x.shape[-2] - angles.shape[-1]
    turned = torch.view_as_complex(x.contiguous()) * torch.exp(1j * F.pad(angles, (0, rest))).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2)


def published(mixer, w, x):
    """The layer [b, s, h] -> [b, s, h] by weights in float64: equations 4, 5 and 9 to 11 and appendix on MIMO."""
    config = mixer.config
    rank, groups, pairs = config.mimo_rank, config.groups, config.num_angles
    sizes = [HEADS * HEAD_DIM] * 2 + [groups * rank * STATE] * 2 + [HEADS] * 3 + [groups * pairs]
    z, v, B, C, dt, A, trap, angles = (x @ w["in_proj.weight"].T).split(sizes, -1)
    z, v = (t.unflatten(-1, (HEADS, HEAD_DIM)) for t in (z, v))
    spread, gates, joined = (w.get(name, torch.ones(HEADS, 1, HEAD_DIM)) for name in ("mimo_x", "mimo_z", "mimo_out"))

    def normed(t, name):
        t = t.unflatten(-1, (groups, rank, STATE))
        t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-5) * w[f"{name}_norm_weight"]
        return t.repeat_interleave(HEADS // groups, 2) + w[f"{name}_bias"]

    B, C = normed(B, "B"), normed(C, "C")
    dt = F.softplus(dt + w["dt_bias"])
    A = F.softplus(A) if config.decay_activation == "softplus" else torch.where(A < 0, 1 / (1 - A), 1 + A)
    alpha, trap = torch.exp(-dt * A.clamp_min(1e-4)), trap.sigmoid()
    beta, gamma = (1 - trap) * dt * alpha, trap * dt
    speed = math.pi * angles.tanh().unflatten(-1, (groups, pairs)).repeat_interleave(HEADS // groups, 2)

    state = torch.zeros(len(x), HEADS, HEAD_DIM, STATE, dtype=torch.float64)
    phi, before, outputs = torch.zeros(len(x), HEADS, pairs, dtype=torch.float64), torch.zeros_like(state), []
    for t in range(x.shape[1]):
        phi = phi + speed[:, t] * dt[:, t, :, None]
        u = torch.einsum("bhp,hrp->bhrp", v[:, t], spread)
        now = torch.einsum("bhrp,bhrn->bhpn", u, rotated(B[:, t], phi))
        a, b, c = (weight[:, t, :, None, None] for weight in (alpha, beta, gamma))
        state, before = a * state + b * before + c * now, now
        y = torch.einsum("bhpn,bhrn->bhrp", state, rotated(C[:, t], phi)) + w["D"][:, None, None] * u
        if config.output_norm:
            weight = w["norm_weight"].view(HEADS, 1, HEAD_DIM)
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * weight
        y = y * F.silu(torch.einsum("bhp,hrp->bhrp", z[:, t], gates))
        outputs.append(torch.einsum("bhrp,hrp->bhp", y, joined).flatten(1))
    return torch.stack(outputs, 1) @ w["out_proj.weight"].T


@pytest.mark.parametrize(
    "keys",
    [
        {"num_groups": 1},
        {"num_groups": 2, "rotary_fraction": 1.0, "decay_activation": "heavy_tail", "output_norm": True},
        {"num_groups": 1, "mimo_rank": 4},
        {"num_groups": 2, "mimo_rank": 2, "rotary_fraction": 1.0, "output_norm": True},
    ],
    ids=["single", "single, all options", "multiple", "multiple, all options"],
)
def test_outputs_and_gradients_are_those_of_the_equations(keys):
    mixer = built(**keys)
    x = torch.randn(SEQ_LEN, BATCH, WIDTH, requires_grad=True)
    weights = {name: p.detach().double().requires_grad_() for name, p in mixer.named_parameters()}
    wide = x.detach().double().requires_grad_()
    y, expected = mixer(x), published(mixer, weights, wide.transpose(0, 1)).transpose(0, 1)
    assert expected.abs().max() > 0.05
    assert (y - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *mixer.parameters()], cotangent)
    theirs = torch.autograd.grad(expected, [wide, *weights.values()], cotangent.double())
    for name, one, other in zip(("x", *weights), ours, theirs, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm(), name


def test_starts_as_published():
    """Biases on B and C at 1, weights of ranks that average."""
    from hybridtron.model.config import ModelConfig
    from hybridtron.model.initialize import initialize
    from hybridtron.model.language_model import LanguageModel

    block = {"type": "mamba3", "head_dim": HEAD_DIM, "state_dim": STATE, "mimo_rank": 4}
    config = ModelConfig.model_validate({"hidden_size": WIDTH, "vocab_size": 8, "blocks": {"x": block}, "pattern": "x"})
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, 0)
    mixer = model.layers["0"].mixer
    expected = {"B_bias": 1, "C_bias": 1, "D": 1, "mimo_x": 0.25, "mimo_z": 1, "mimo_out": 0.25}
    for name, value in expected.items():
        assert (getattr(mixer, name) == value).all(), name


@pytest.mark.parametrize("keys", [{}, {"mimo_rank": 3, "rotary_fraction": 1.0}])
def test_the_state_has_the_elements_that_the_config_counts(keys):
    """A head's state, and of the last token B, x and the angles."""
    mixer = built(**keys)
    held = sum(tensor[0].numel() for tensor in mixer.initial_state(BATCH))
    assert held == mixer.config.state_size(100)
    rank, pairs = mixer.config.mimo_rank, mixer.config.num_angles
    assert held == HEADS * (HEAD_DIM * STATE + rank * STATE + HEAD_DIM + pairs)
