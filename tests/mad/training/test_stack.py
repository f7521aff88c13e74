import pytest
import torch
import torch.nn.functional as F

from hybridtron.mad.models.architecture import from_layers, with_residual
from hybridtron.mad.models.proxy_model import ProxyModel, initial_values, proxy_tensors
from hybridtron.mad.tasks.generate import generate
from hybridtron.mad.training.adamw import StackedAdamW
from hybridtron.mad.training.presets import GRID
from hybridtron.mad.training.stack import LOGITS_PER_PASS, Stack, can_stack

STEPS = 20


def examples(task="in-context-recall", count=16, **setting):
    inputs, targets = generate(task, {"seq_len": 16, **setting}, "train", seed=0, num_examples=count)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def batches(tokens, targets, size=4):
    return [(tokens[i % len(tokens) :][:size], targets[i % len(tokens) :][:size]) for i in range(0, STEPS * size, size)]


def trained_alone(config, cell, data, autoencoder=False):
    """One model in the ordinary way: a module, cross-entropy, PyTorch's AdamW with and without decay."""
    model = ProxyModel(config, autoencoder)
    model.load_state_dict(initial_values(config, autoencoder, seed=0))
    specs = proxy_tensors(config, autoencoder)
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if specs[name].decay == decays],
            "weight_decay": cell.weight_decay * decays,
        }
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=cell.lr, betas=(0.9, 0.98))
    for tokens, targets in batches(*data):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        optimizer.step()
    return dict(model.named_parameters())


def trained_in_a_stack(config, data, one_pass, autoencoder=False):
    stack = Stack(config, autoencoder, [initial_values(config, autoencoder, seed=0)] * len(GRID), one_pass=one_pass)
    optimizer = StackedAdamW(stack.flat, (0.9, 0.98))
    lr = torch.tensor([[cell.lr] for cell in GRID])
    decay = torch.tensor([[cell.weight_decay] for cell in GRID]) * stack.decay
    for tokens, targets in batches(*data):
        _, gradients = stack.gradients(tokens, targets)
        optimizer.step(stack.flat, gradients, lr, decay)
    return stack


@pytest.mark.parametrize(
    ("layers", "one_pass"),
    [
        (["attention"], True),
        (["mamba"], True),
        (["hyena"], True),
        (["swiglu"], True),
        (["moe-mlp"], True),
        (["mh-hyena", "mh-attention"], True),
        (["mamba"], False),
        (["moe-mlp"], False),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "one pass" if value else "cell by cell",
)
def test_every_cell_of_a_stack_gets_the_weights_of_training_it_alone(layers, one_pass):
    config = from_layers(layers).model(vocab_size=16, seq_len=15)
    assert can_stack(config)
    data = examples()
    stack = trained_in_a_stack(config, data, one_pass)
    for index, cell in enumerate(GRID):
        alone = trained_alone(config, cell, data)
        for name, value in stack.parameters(index).items():
            assert (value - alone[name]).abs().max() < 1e-4, (name, str(cell))


def test_the_autoencoder_trains_in_a_stack_as_alone():
    config = from_layers(["mh-attention", "mlp"]).model(vocab_size=16, seq_len=16)
    data = examples("compression")
    stack = trained_in_a_stack(config, data, one_pass=True, autoencoder=True)
    alone = trained_alone(config, GRID[-1], data, autoencoder=True)
    for name, value in stack.parameters(len(GRID) - 1).items():
        assert (value - alone[name]).abs().max() < 1e-4, name


def test_cells_of_different_seeds_take_batches_of_their_own():
    config = from_layers(["mh-attention"]).model(vocab_size=16, seq_len=15)
    values = [initial_values(config, False, seed) for seed in (0, 1)]
    tokens, targets = examples(count=8)
    tokens, targets = tokens.view(2, 4, -1), targets.view(2, 4, -1)
    losses, gradients = Stack(config, False, values, one_pass=True).gradients(tokens, targets)
    for i in range(2):
        loss, gradient = Stack(config, False, values[i : i + 1], one_pass=False).gradients(tokens[i], targets[i])
        torch.testing.assert_close(losses[i], loss[0])
        torch.testing.assert_close(gradients[i], gradient[0], atol=1e-6, rtol=1e-4)


def test_runs_of_a_batch_add_up_to_the_whole():
    config = from_layers(["mh-attention", "swiglu"]).model(vocab_size=16, seq_len=15)
    tokens, targets = examples(count=10)
    targets[:, :7] = -100
    targets[3] = -100
    values = [initial_values(config, False, 0)] * 2
    whole = Stack(config, False, values, tokens_per_pass=1 << 20)
    cut = Stack(config, False, values, tokens_per_pass=90)
    for a, b in zip(whole.gradients(tokens, targets), cut.gradients(tokens, targets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    for a, b in zip(whole.predict(tokens, targets), cut.predict(tokens, targets), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pass_is_bounded_by_its_logits_too():
    config = from_layers(["mlp"]).model(vocab_size=8192, seq_len=32)
    stack = Stack(config, False, [initial_values(config, False, 0)] * 2, one_pass=True)
    tokens = torch.zeros(128, 32, dtype=torch.long)
    runs = stack._runs(tokens, tokens)
    assert sum(len(some) for some, _ in runs) == 128
    assert max(some.numel() for some, _ in runs) * len(stack) * 8192 <= LOGITS_PER_PASS["cpu"]


def test_frozen_parameters_are_used_and_not_changed():
    config = from_layers(["mh-attention"]).model(vocab_size=16, seq_len=15)
    values = initial_values(config, False, 0)
    frozen = {name: value for name, value in values.items() if name.startswith("layers.")}
    trained = {name: value for name, value in values.items() if name not in frozen}
    tokens, targets = examples(count=4)
    whole = Stack(config, False, [values]).gradients(tokens, targets)
    part = Stack(config, False, [trained], frozen)
    losses, gradients = part.gradients(tokens, targets)
    torch.testing.assert_close(losses, whole[0])
    assert gradients.shape[1] == sum(value.numel() for value in trained.values()) < whole[1].shape[1]
    assert part.parameters(0).keys() == values.keys()


def test_dropping_cells_leaves_the_others():
    config = from_layers(["swiglu"]).model(vocab_size=16, seq_len=15)
    stack = Stack(config, False, [initial_values(config, False, seed) for seed in range(3)])
    kept = stack.flat[[0, 2]].clone()
    stack.keep(torch.tensor([0, 2]))
    assert len(stack) == 2
    assert (stack.flat == kept).all()


@pytest.mark.parametrize("layers", [["mh-attention", "swiglu"], ["mlp", "short-conv"]])
def test_one_pass_and_cell_by_cell_agree_where_few_positions_are_scored(layers):
    """Cell by cell the last layers run for the scored positions alone."""
    config = from_layers(layers).model(vocab_size=16, seq_len=15)
    tokens, targets = examples(count=6)
    targets[:, :9] = -100
    targets[3] = -100
    values = [initial_values(config, False, seed) for seed in (0, 1)]
    whole, picked = (Stack(config, False, values, one_pass=one_pass) for one_pass in (True, False))
    for a, b in zip(whole.gradients(tokens, targets), picked.gradients(tokens, targets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    (tokens_a, losses_a), (tokens_b, losses_b) = (stack.predict(tokens, targets) for stack in (whole, picked))
    scored = (targets != -100).expand_as(tokens_a)
    assert torch.equal(tokens_a[scored], tokens_b[scored])
    torch.testing.assert_close(losses_a, losses_b)


def test_a_pass_in_which_no_position_is_scored_adds_nothing():
    """Hyper-connections cannot take no tokens."""
    made = with_residual(from_layers(["mh-attention", "swiglu"]), {"type": "hyper_connections"})
    config = made.model(vocab_size=16, seq_len=15)
    tokens, targets = examples(count=2)
    targets[1] = -100
    stack = Stack(config, False, [initial_values(config, False, 0)], one_pass=False, tokens_per_pass=15)
    for both, first in zip(stack.gradients(tokens, targets), stack.gradients(tokens[:1], targets[:1]), strict=True):
        torch.testing.assert_close(both, first)
    torch.testing.assert_close(stack.predict(tokens, targets)[1], stack.predict(tokens[:1], targets[:1])[1])
