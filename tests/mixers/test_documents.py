"""Documents that are packed into sequences give what each gives alone, in every primitive."""

import numpy as np
import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.documents import Documents, group_sizes
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.mixers.test_contract import CASES, WIDTH, noisy

SEQ_LEN = 40
# Across chunks of 8 and 16, of one token at the beginning, inside and at the end, and a whole sequence.
LENGTHS = ([1, 17, 1, 21], [40], [16, 8, 15, 1])
CHANNEL_MIXERS = {"swiglu", "mlp", "moe"}  # which see no other token


def built(case, recompute="none"):
    """One layer; without the losses that balance experts, which are means over whole sequences."""
    block = CASES[case] | ({"aux_loss": 0.0, "z_loss": 0.0} if CASES[case]["type"] == "moe" else {})
    config = ModelConfig.model_validate(
        {"hidden_size": WIDTH, "vocab_size": 64, "blocks": {"x": block}, "pattern": "x", "init_std": 0.2}
    )
    model = LanguageModel(config, TorchBackend(), recompute=lambda name: recompute)
    initialize(model, config, seed=0)
    return noisy(model)


def documents(lengths=LENGTHS):
    return Documents(tuple(map(np.array, lengths)), torch.ones(len(lengths), sum(lengths[0])))


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(64, (len(LENGTHS), SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))


def outcome(model, nll):
    """Return losses and the gradients of a sum of their squares, which weighs tokens differently."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(nll.square().mean(), list(trained.values()))
    return nll.detach(), dict(zip(trained, gradients, strict=True))


def alone(model, tokens):
    """Return the losses [s, b] of every document as a sequence by itself."""
    rows = []
    for row, lengths in zip(tokens, LENGTHS, strict=True):
        ends = np.cumsum(lengths)
        pieces = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        rows.append(torch.cat([model(row[:-1][None, piece], row[1:][None, piece])[0] for piece in pieces]))
    return torch.cat(rows, 1)


@pytest.mark.parametrize("case", CASES)
def test_documents_are_as_each_alone(case, tokens):
    model = built(case)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    expected, gradients = outcome(model, alone(model, tokens))
    found, own = outcome(model, model(inputs, labels, documents())[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5 * max(1, float(gradient.abs().max())), rtol=1e-5)
    flowing = model(inputs, labels)[0]
    torch.testing.assert_close(flowing[:, 1], found[:, 1], atol=1e-5, rtol=1e-5)
    same = CASES[case]["type"] in CHANNEL_MIXERS
    assert torch.allclose(flowing, found, atol=1e-5) == same


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("case", ["attention", "mamba1", "rwkv6", "rwkv6_channel", "parallel"])
def test_recomputing_changes_nothing(case, recompute, tokens):
    results = []
    for each in ("none", recompute):
        model = built(case, each)
        results.append(outcome(model, model(tokens[:, :-1], tokens[:, 1:], documents())[0]))
    (losses, gradients), (again, others) = results
    assert torch.equal(losses, again)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_whole_sequences_are_not_copied(tokens):
    model = built("mamba2")
    whole = documents([[SEQ_LEN]] * len(tokens))
    assert torch.equal(model(tokens[:, :-1], documents=whole), model(tokens[:, :-1]))
    assert not whole._groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_cost_the_least(seed):
    """Against all ways of cutting the sorted lengths."""
    numbers = np.random.default_rng(seed)
    lengths, cost = np.sort(numbers.integers(1, 30, 9)), int(numbers.integers(1, 60))

    def price(sizes):
        ends = np.cumsum(sizes)
        return sum(size * lengths[end - 1] + cost for size, end in zip(sizes, ends, strict=True))

    def ways(count):
        yield [count]
        for last in range(1, count):
            yield from ([*before, last] for before in ways(count - last))

    sizes = group_sizes(lengths, cost)
    assert sum(sizes) == len(lengths)
    assert price(sizes) == min(map(price, ways(len(lengths))))
