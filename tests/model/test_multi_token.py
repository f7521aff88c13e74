"""Multi-token prediction against a plain writing in float64, in the engine too, and what does not use it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridtron.api.configs import read_training_config
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import micro_batch, step_documents
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.documents import weights_ahead
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig

WIDTH, VOCAB, S, B = 16, 32, 12, 4
BLOCKS = {
    "attn": {"type": "attention", "num_heads": 2, "rotary_fraction": 0.0},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 24},
}
MODEL = {"hidden_size": WIDTH, "vocab_size": VOCAB, "init_std": 0.3, "blocks": BLOCKS, "pattern": "attn mlp"}
VARIANTS = {
    "one depth": {"pattern": "mlp"},
    "two modules": {"pattern": "attn mlp", "depth": 2, "loss_weight": 0.5},
    "a shared module": {"pattern": "attn mlp", "depth": 3, "shared": True},
}


def norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def attention(x, p, mask):
    q, k, v = (part.unflatten(-1, (2, -1)) for part in (x @ p["qkv.weight"].T).chunk(3, -1))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    y = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1), v)
    return y.flatten(2) @ p["proj.weight"].T


def gated(x, p):
    gate, up = (x @ p["gate_up.weight"].T).chunk(2, -1)
    return (F.silu(gate) * up) @ p["down.weight"].T


def layers(x, p, prefix, names, mask):
    """x [b, s, h] after layers of these blocks."""
    for i, name in enumerate(names):
        start = f"{prefix}layers.{i}."
        own = {key.removeprefix(f"{start}mixer."): value for key, value in p.items() if key.startswith(start)}
        normed = norm(x, p[f"{start}norm.weight"])
        x = x + (attention(normed, own, mask) if name == "attn" else gated(normed, own))
    return x


def plain_losses(config, p, text, mask):
    """The losses [b, s - k] of the tokens k + 1 positions further, k = 0, 1, ...; text [b, s + 1], mask [b, s, s]."""

    def losses(h, weight, targets):
        logits = norm(h, weight) @ p["embedding.weight" if config.tie_embeddings else "head.weight"].T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    h = layers(p["embedding.weight"][text[:, :S]], p, "", config.layer_names, mask)
    found = [losses(h, p["final_norm.weight"], text[:, 1:])]
    for depth in range(1, config.mtp.depth + 1):
        module = f"mtp.{0 if config.mtp.shared else depth - 1}."
        embedded = norm(p["embedding.weight"][text[:, depth:S]], p[f"{module}embedding_norm.weight"])
        h = norm(h[:, : embedded.size(1)], p[f"{module}hidden_norm.weight"])
        h = torch.cat([h, embedded], -1) @ p[f"{module}proj"].T
        seen = mask[:, : h.size(1), : h.size(1)]
        h = layers(h, p, module, config.mtp_layer_names, seen)
        found.append(losses(h, p[f"{module}final_norm.weight"], text[:, depth + 1 :]))
    return found


def texts(seed=0):
    return torch.randint(VOCAB, (B, S + 1), generator=torch.Generator().manual_seed(seed))


CAUSAL = torch.ones(S, S, dtype=torch.bool).tril().expand(B, S, S)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_plain_writing(variant, tied):
    config = build({**MODEL, "mtp": VARIANTS[variant], "tie_embeddings": tied}, ModelConfig)
    model, text = LanguageModel(config, TorchBackend(torch.float64)), texts()
    initialize(model, config, seed=1)
    depth = config.mtp.depth
    nll, _, further = model(text[:, :-1], F.pad(text[:, 1:], (0, depth)))
    found = [nll.T, *(each.T[:, : S - k] for k, each in enumerate(further, 1))]
    parameters = dict(model.named_parameters())
    expected = plain_losses(config, parameters, text, CAUSAL)
    assert len(found) == len(expected) == 1 + depth
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    pairs = zip(*(grads(losses, parameters) for losses in (found, expected)), parameters, strict=True)
    for one, other, name in pairs:
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def grads(losses, parameters):
    """Of a sum in which every loss has another weight."""
    total = sum((loss * torch.linspace(1, 2, loss.numel()).view_as(loss)).sum() for loss in losses)
    return torch.autograd.grad(total, list(parameters.values()), retain_graph=True)


class Documents:
    """Of lengths from 1 to the whole sequence."""

    lengths = ([S + 1], [1, 4, 3, 1, 1, 3], [2, 11], [5, 8])

    @classmethod
    def documents(cls, indices):
        return [np.array(cls.lengths[index % 4]) for index in indices]


@pytest.fixture(scope="module", params=["flow", "isolate"])
def trained(request):
    """A step of the engine: its config, result and gradients, and the model's parameters before it."""
    config = read_training_config(
        {
            "name": "further",
            "model": {**MODEL, "vocab_size": 320, "mtp": VARIANTS["two modules"]},
            "data": {"train": "none", "seq_len": S, "documents": request.param},
            "train": {"steps": 1, "global_batch_size": B, "micro_batch_size": 2},
            "optimizer": {"lr": 1e-3, "clip_grad": 0},
        }
    )
    sampler = BatchSampler(BatchSizes(B), 2, 0, 1)
    documents = step_documents(Documents, 0, sampler) if config.data.isolates else [None, None]
    batches = [micro_batch(*each) for each in zip(texts().split(2), documents, strict=True)]
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        before = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
        evaluated = engine.evaluate(batches, B)
        result = engine.train_step(batches, 1e-3)
        gradients = {name: p.main_grad.clone() for name, p in model.named_parameters()}
        yield config, result, gradients, before, evaluated


def test_a_training_step_minimises_the_weighted_mean_over_positions_that_count(trained):
    """Those whose further token lies in their sequence, and in their document where documents are apart."""
    config, result, gradients, before, evaluated = trained
    lengths = Documents.lengths if config.data.isolates else [[S + 1]] * B
    document = torch.stack([torch.arange(len(each)).repeat_interleave(torch.tensor(each)) for each in lengths])
    mask = CAUSAL & (document[:, :S, None] == document[:, None, :S])
    losses = plain_losses(config.model, before, texts(), mask)
    means = [loss[document[:, : S - k] == document[:, k + 1 :]].mean() for k, loss in enumerate(losses)]
    further = sum(means[1:]) / 2
    assert result.loss == pytest.approx(float(means[0]), abs=1e-5)
    assert evaluated == pytest.approx(result.loss, abs=1e-6)
    assert result.mtp_loss == pytest.approx(float(further), abs=1e-5)
    expected = torch.autograd.grad(means[0] + 0.5 * further, list(before.values()))
    for (name, one), other in zip(gradients.items(), expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


def test_weights_of_whole_sequences_leave_out_the_last_positions():
    weights = weights_ahead(S, 2)
    assert weights.mean() == pytest.approx(1)
    assert weights[0].tolist() == pytest.approx([S / (S - 2)] * (S - 2) + [0, 0])


@torch.no_grad()
def test_nothing_else_uses_the_modules():
    """Losses, logits and steps are those of the model without them."""
    plain, with_mtp = (build({**MODEL, **keys}, ModelConfig) for keys in ({}, {"mtp": VARIANTS["two modules"]}))
    models = [LanguageModel(config, TorchBackend()) for config in (plain, with_mtp)]
    for model, config in zip(models, (plain, with_mtp), strict=True):
        initialize(model, config, seed=1)
    tokens, labels = texts()[:, :-1], texts()[:, 1:]
    assert len(models[1](tokens, labels)) == 2
    for function in (
        lambda model: model(tokens, labels)[0],
        lambda model: model.logits(tokens),
        lambda model: model.prefill(tokens, model.initial_state(B))[0],
        lambda model: model.step(tokens[:, 0], model.initial_state(B))[0],
    ):
        assert torch.equal(function(models[0]), function(models[1]))


@pytest.mark.parametrize(
    ("mtp", "message"),
    [
        ({"pattern": "attn gone"}, "model.mtp.pattern: unknown block 'gone'"),
        ({"pattern": "attn | mlp"}, "mtp.pattern = 'attn | mlp': expected no '|'"),
        ({"pattern": "attn", "depth": 0}, "mtp.depth = 0"),
        ({"pattern": "attn", "depth": 12}, "model.mtp.depth = 12: expected less than data.seq_len 12"),
    ],
)
def test_what_cannot_be_predicted_is_refused(mtp, message):
    data = {"train": "none", "seq_len": S, "tokenizer": "byte"}
    config = {"name": "x", "model": {**MODEL, "vocab_size": 320, "mtp": mtp}, "data": data, "optimizer": {"lr": 1.0}}
    with pytest.raises(UserError, match=message):
        build(config | {"train": {"steps": 1, "global_batch_size": 1}}, RunConfig)
