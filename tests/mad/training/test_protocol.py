"""What `train_setting` does under the presets, against a loop of PyTorch's own optimiser and schedule."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from hybridtron.mad import generate
from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.models.proxy_model import ProxyModel, proxy_tensors
from hybridtron.mad.tasks.protocol import task
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import Cell, preset

TASK = "in-context-recall"
SETTING = {"vocab_size": 8, "seq_len": 16, "num_train_examples": 40}
SEED = 3
BATCH_SIZE = 16  # three batches an epoch, the last of 8
STEPS = 7  # into the third epoch
EVAL_EXAMPLES = 64
CELLS = (Cell(5e-3, 0.5), Cell(2e-3, 0.25))
CLOSE = {"rel": 1e-5, "abs": 1e-6}  # rows have six decimals


@dataclass(frozen=True)
class Protocol:
    betas: tuple[float, float]
    anneals: bool
    decays_all: bool
    selects_on: str


PROTOCOLS = {
    "paper": Protocol((0.9, 0.98), anneals=True, decays_all=False, selects_on="valid"),
    "madlab": Protocol((0.9, 0.999), anneals=False, decays_all=True, selects_on="test"),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("one_pass", [False, True], ids=["cell by cell", "one pass"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_cell_is_trained_and_scored_as_a_plain_loop_does(name, one_pass):
    chosen = preset(
        name, cells=CELLS, max_steps=STEPS, batch_size=BATCH_SIZE, eval_examples=EVAL_EXAMPLES, evaluations=1
    )
    candidate = from_layers(["attention", "swiglu"], chosen.match_mad_lab)
    rows = train_setting(candidate, TASK, SETTING, chosen, [SEED], one_pass=one_pass)
    for row, cell in zip(rows, CELLS, strict=True):
        model, training_loss = plainly_trained(candidate, PROTOCOLS[name], cell)
        for kind, split in (("test", "test"), ("select", PROTOCOLS[name].selects_on)):
            loss, micro = scores(model, split)
            assert row[f"{kind}_loss"] == pytest.approx(loss, **CLOSE), (kind, str(cell))
            assert row[f"{kind}_micro"] == pytest.approx(micro), (kind, str(cell))
        steps, mean_loss, selecting, _, selecting_loss = row["curve"][-1]
        assert selecting_loss == row["select_loss"]
        assert steps == STEPS
        assert mean_loss == pytest.approx(training_loss, **CLOSE)
        assert selecting == pytest.approx(row["select_micro"], abs=1e-6)


def test_the_scores_above_tell_the_splits_apart():
    model, _ = plainly_trained(from_layers(["attention", "swiglu"]), PROTOCOLS["paper"], CELLS[0])
    for valid, test in zip(scores(model, "valid"), scores(model, "test"), strict=True):
        assert abs(valid - test) > 1e-3


def plainly_trained(candidate, protocol, cell):
    """The model, and its mean training loss over all steps."""
    config, values, _ = candidate.start(task(TASK), SETTING["vocab_size"], SETTING["seq_len"] - 1, SEED)
    model, specs = ProxyModel(config, autoencoder=False), proxy_tensors(config, autoencoder=False)
    model.load_state_dict(values)
    groups = [
        {
            "params": [
                p for name, p in model.named_parameters() if (protocol.decays_all or specs[name].decay) == decays
            ],
            "weight_decay": cell.weight_decay * decays,
        }
        for decays in (True, False)
    ]
    assert bool(groups[1]["params"]) != protocol.decays_all
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=cell.lr, betas=protocol.betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=1e-6)
    losses = []
    for tokens, targets in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        if protocol.anneals:
            schedule.step()
        losses.append(loss.item())
    return model, sum(losses) / STEPS


def batches():
    """Those of the first STEPS steps; every epoch shuffles anew, by a seed of its own."""
    tokens, targets = examples("train", None)
    made = []
    for epoch in range(STEPS):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
        made += torch.randperm(len(tokens), generator=generator).split(BATCH_SIZE)
    return [(tokens[rows], targets[rows]) for rows in made[:STEPS]]


@torch.no_grad()
def scores(model, split):
    """Mean loss and accuracy over the scored positions."""
    tokens, targets = examples(split, EVAL_EXAMPLES)
    scored = targets != -100
    logits = model(tokens)[scored]
    return F.cross_entropy(logits, targets[scored]).item(), (
        logits.argmax(-1) == targets[scored]
    ).double().mean().item()


def examples(split, count):
    return tuple(map(torch.from_numpy, generate(TASK, SETTING, split, SEED, num_examples=count)))
