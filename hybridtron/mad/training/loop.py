"""Train all cells of one setting, for one seed or several, and score them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import hybridtron
from hybridtron.mad.models.architecture import Architecture
from hybridtron.mad.models.candidate import Candidate
from hybridtron.mad.models.proxy_model import initial_values
from hybridtron.mad.scoring.accuracy import BATCH, accuracy
from hybridtron.mad.scoring.results import Row
from hybridtron.mad.tasks.generate import generate
from hybridtron.mad.tasks.protocol import IGNORE, Setting, complete, task
from hybridtron.mad.tasks.stored import read_examples
from hybridtron.mad.training.adamw import StackedAdamW
from hybridtron.mad.training.halving import halving_steps, worse_half
from hybridtron.mad.training.presets import Cell, Preset
from hybridtron.mad.training.stack import Stack, can_stack

LOWEST_LR = 1e-6  # to which the cosine falls


@dataclass
class _Run:
    """One cell with one seed."""

    seed: int
    cell: Cell
    curve: list[list[Any]] = field(default_factory=list)
    best: float = -1.0
    least_loss: float = math.inf
    waited: int = 0  # evaluations since either gained
    scored_step: int = 0  # after which the weights that count were evaluated
    scored: _Evaluation | None = None
    row: Row = field(default_factory=dict)

    def record(self, step: int, mean_loss: float, found: _Evaluation, preset: Preset) -> None:
        """Add an evaluation to the curve, and keep it where its weights are those that count so far."""
        self.curve.append([step, _finite(mean_loss), round(found.micro, 6), round(found.macro, 6), _finite(found.loss)])
        if self.scored is None or not preset.scores_best_evaluation or found.perplexity < self.scored.perplexity:
            self.scored_step, self.scored = step, found


def train_setting(
    candidate: Candidate,
    task_name: str,
    setting: Setting,
    preset: Preset,
    seeds: Sequence[int],
    *,
    done: Collection[tuple[int, Cell]] = (),
    device: str = "cpu",
    one_pass: bool | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_step: Callable[[int, int, float | None], None] | None = None,
) -> list[Row]:
    """Train one cell per seed and grid point, without the pairs that are `done`; return their rows (docs/mad.md).

    `one_pass`: gradients of all cells in one pass; by default on a GPU, where all layers can. Else one cell is trained
    after the other: on a CPU core that is faster, by the fused operations that torch.func cannot follow. A cell's row
    does not depend on which others are trained, nor in which order, unless `preset.halving`, with which all cells of a
    seed are trained, those that are done too. `on_row(row)` is called when a cell, or with halving a group, has ended,
    `on_step(steps, planned, accuracy)` after every step of the setting, with the best selecting accuracy at the last
    evaluation of the cells in work.
    """
    chosen, whole = task(task_name), complete(task_name, setting)
    runs = [_Run(seed, cell) for seed in seeds for cell in preset.cells if (seed, cell) not in done]
    if preset.halving:  # which cells end follows from all of a seed's
        runs = [_Run(seed, cell) for seed in dict.fromkeys(run.seed for run in runs) for cell in preset.cells]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    seq_len, vocab_size = int(whole["seq_len"]), int(whole["vocab_size"])
    starts = {seed: candidate.start(chosen, vocab_size, seq_len, seed) for seed in seeds}
    if preset.normal_init and isinstance(candidate, Architecture):
        starts = {
            seed: (config, initial_values(config, chosen.autoencoder, seed, normal_init=True), frozen)
            for seed, (config, _, frozen) in starts.items()
        }
    one_pass = device != "cpu" if one_pass is None else one_pass
    one_pass = one_pass and all(can_stack(config) for config, _, _ in starts.values())
    groups = _groups(runs, seeds, one_pass, preset.halving)
    about = {**_about(candidate, preset, device), "task": task_name, "setting": whole}
    steps = preset.steps(int(whole["num_train_examples"]))
    of_group: list[int] = []
    for index, group in enumerate(groups):
        began = time.perf_counter()
        if of_group != (of_group := list(dict.fromkeys(run.seed for run in group))):
            splits = _splits(task_name, whole, preset, of_group, device)
        config, _, frozen = starts[of_group[0]]
        values = [starts[run.seed][1] for run in group]
        stack = Stack(config, chosen.autoencoder, values, frozen, device=device, one_pass=one_pass)
        for event in _train(stack, group, of_group, splits, preset, vocab_size):
            if isinstance(event, int):
                if on_step:
                    on_step(index * steps + event, steps * len(groups), _best_so_far(group, preset.accuracy))
                continue
            event.row = {**about, **event.row, "seconds": round(time.perf_counter() - began, 2)}
            if on_row and not preset.halving:
                on_row(event.row)
        if on_row and preset.halving:  # at once: from some of a seed's rows the rest would not follow
            for run in group:
                if (run.seed, run.cell) not in done:
                    on_row(run.row)
    return [run.row for run in runs if (run.seed, run.cell) not in done]


def _groups(runs: list[_Run], seeds: Sequence[int], one_pass: bool, halving: bool) -> list[list[_Run]]:
    """Split runs into those that train side by side: all, the cells of a seed that compete, or one at a time."""
    if one_pass:
        return [runs] if runs else []
    if halving:
        return [[run for run in runs if run.seed == seed] for seed in seeds]
    return [[run] for run in runs]


def _train(
    stack: Stack,
    live: list[_Run],
    seeds: Sequence[int],
    splits: dict[str, tuple[Tensor, Tensor]],
    preset: Preset,
    vocab_size: int,
) -> Iterator[int | _Run]:
    """Train one cell per row of the stack, on the examples [seeds, n, s] of the seeds they have among them.

    Yields the number of every step, and after it the cells that end with it, with what was reached in their rows.
    """
    device = stack.flat.device
    num_examples = splits["train"][0].shape[1]
    steps, per_epoch = preset.steps(num_examples), preset.steps_per_epoch(num_examples)
    every = preset.steps_between_evaluations(num_examples)
    rungs = halving_steps(len(preset.cells), steps, every) if preset.halving else ()
    optimizer = StackedAdamW(stack.flat, preset.betas)
    decays = torch.ones_like(stack.decay) if preset.match_mad_lab else stack.decay
    which = torch.tensor([seeds.index(run.seed) for run in live], device=device)  # seed of each live cell
    peak = torch.tensor([[run.cell.lr] for run in live], device=device)
    decay = torch.tensor([[run.cell.weight_decay] for run in live], device=device) * decays
    total, since = torch.zeros(len(live), device=device), 0
    for step in range(steps):
        if step % per_epoch == 0:
            order = _orders(seeds, step // per_epoch, num_examples, device)
        start = step % per_epoch * preset.batch_size
        tokens, targets = _batch(splits["train"], order[:, start : start + preset.batch_size], which)
        losses, gradients = stack.gradients(tokens, targets)
        lr = _lr(peak, step, steps, preset)
        optimizer.step(stack.flat, gradients, lr, decay)
        total, since = total + losses, since + 1
        yield step + 1
        if (step + 1) % every and step + 1 < steps:
            continue
        everything = torch.arange(len(live), device=device)
        found = _evaluate(stack, splits[preset.select_split], which, everything, vocab_size)
        mean_loss = (total / since).tolist()
        total, since = torch.zeros_like(total), 0
        ended = _endings(live, found, mean_loss, step + 1, steps, preset)
        if step + 1 in rungs:
            compared = {i: at for i, at in enumerate(found) if i not in ended}
            ended |= dict.fromkeys(_worse_half(live, compared, preset), "pruned")
        if not ended:
            continue
        chosen_by = [run.scored for i, run in enumerate(live) if i in ended and run.scored]
        test = chosen_by
        if preset.select_split != "test":
            test = _evaluate(stack, splits["test"], which, torch.tensor(list(ended), device=device), vocab_size)
        for (i, why), selecting, tested in zip(ended.items(), chosen_by, test, strict=True):
            live[i].row = _row(live[i], why, step + 1, steps, selecting, tested)
            yield live[i]
        staying = torch.tensor([i for i in range(len(live)) if i not in ended], dtype=torch.long, device=device)
        live = [run for i, run in enumerate(live) if i not in ended]
        if not live:
            return
        stack.keep(staying)
        optimizer.keep(staying)
        which, peak, decay, total = which[staying], peak[staying], decay[staying], total[staying]


def _endings(
    live: list[_Run], found: Sequence[_Evaluation], mean_loss: Sequence[float], step: int, steps: int, preset: Preset
) -> dict[int, str]:
    """Record an evaluation in every run; return why a run ends with it, by the run's place."""
    ended: dict[int, str] = {}
    for i, (run, loss, at) in enumerate(zip(live, mean_loss, found, strict=True)):
        run.record(step, loss, at, preset)
        why = _ending(run, loss, getattr(at, preset.accuracy), at.loss, preset)
        if why or step == steps:
            ended[i] = why or "end"
    return ended


def _best_so_far(group: Sequence[_Run], kind: str) -> float | None:
    """Return the best accuracy at the last evaluation of the runs in progress; None before the first."""
    place = 2 if kind == "micro" else 3
    return max((run.curve[-1][place] for run in group if run.curve and not run.row), default=None)


def _about(candidate: Candidate, preset: Preset, device: str) -> dict[str, Any]:
    """Return the fields that all rows of one architecture and preset share."""
    return {
        "architecture": candidate.name,
        "pattern": candidate.pattern,
        "notes": list(candidate.notes),
        **candidate.account(),
        "fingerprint": candidate.fingerprint(),
        "preset": preset.name,
        "protocol": preset.fingerprint(),
        "accuracy": preset.accuracy,
        "selected_on": preset.select_split,
        "num_cells": len(preset.cells),
        "batch_size": preset.batch_size,
        **({"data": preset.data} if preset.data else {}),
        **({"halving": True} if preset.halving else {}),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "version": hybridtron.__version__,
    }


_Examples = tuple[Tensor, Tensor]  # inputs and targets, each int32 [seeds, examples, length]


def _splits(
    task_name: str, setting: Setting, preset: Preset, seeds: Sequence[int], device: str
) -> dict[str, _Examples]:
    """Generate, or read, training, selecting and test examples of these seeds."""
    made = {}
    for split in dict.fromkeys(("train", preset.select_split, "test")):
        count = None if split == "train" else preset.eval_examples
        if preset.data is not None:
            pairs = [read_examples(Path(preset.data), task_name, setting, split, count)] * len(seeds)
        else:
            pairs = [generate(task_name, setting, split, seed, num_examples=count) for seed in seeds]
        inputs, targets = (torch.from_numpy(np.stack(part, dtype=np.int32)) for part in zip(*pairs, strict=True))
        made[split] = inputs.to(device), targets.to(device)
    return made


def _orders(seeds: Sequence[int], epoch: int, num_examples: int, device: torch.device) -> Tensor:
    """Shuffle the examples of an epoch for each seed: [seeds, examples]."""
    orders = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        orders.append(torch.randperm(num_examples, generator=generator))
    return torch.stack(orders).to(device)


def _batch(examples: _Examples, chosen: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Take rows `chosen` [seeds, b] of the examples; with several seeds once per cell, [cells, b, s]."""
    inputs, targets = (torch.stack([part[i] for part, i in zip(tensor, chosen, strict=True)]) for tensor in examples)
    return _shared(inputs, which), _shared(targets, which)


def _shared(tensor: Tensor, which: Tensor) -> Tensor:
    return (tensor[0] if len(tensor) == 1 else tensor[which]).long()


def _lr(peak: Tensor, step: int, steps: int, preset: Preset) -> Tensor:
    """Compute the learning rate of update `step` + 1: [cells, 1]."""
    if preset.schedule == "constant":
        return peak
    return LOWEST_LR + (peak - LOWEST_LR) * (0.5 * (1 + math.cos(math.pi * step / steps)))


class _Evaluation(NamedTuple):
    """Of one cell on one split; `perplexity` is mad-lab's, the mean over batches of exp(mean loss of a batch)."""

    micro: float
    macro: float
    loss: float
    perplexity: float

    def as_row(self, kind: str) -> Row:
        return {f"{kind}_micro": self.micro, f"{kind}_macro": self.macro, f"{kind}_loss": _finite(self.loss)}


def _evaluate(stack: Stack, examples: _Examples, which: Tensor, cells: Tensor, vocab_size: int) -> list[_Evaluation]:
    """Evaluate each of these cells; `which` is the seed of every cell of the stack."""
    tokens, targets = (_shared(tensor, which[cells]) for tensor in examples)
    batches = list(zip(tokens.split(BATCH, -2), targets.split(BATCH, -2), strict=True))
    predictions, losses = zip(*(stack.predict(*batch, cells) for batch in batches), strict=True)
    found = accuracy(torch.cat(predictions, 1), targets, vocab_size)
    counts = torch.stack([(scored != IGNORE).sum((-2, -1)) for _, scored in batches]).view(len(batches), -1)
    by_batch = torch.stack(losses).double()  # [batches, cells]
    loss, perplexity = (by_batch * counts).sum(0) / counts.sum(0), by_batch.exp().mean(0)
    return list(map(_Evaluation, *(part.tolist() for part in (found.micro, found.macro, loss, perplexity))))


def _ending(run: _Run, training_loss: float, reached: float, loss: float, preset: Preset) -> str | None:
    """Return why a cell stops after an evaluation, None where it continues. Loss falls long before accuracy rises."""
    if not math.isfinite(training_loss):
        return "diverged"
    if reached >= preset.stop_at:
        return "reached"
    run.waited += 1
    if reached > run.best + preset.least_gain:
        run.best, run.waited = reached, 0
    if loss < run.least_loss - preset.least_gain:
        run.least_loss, run.waited = loss, 0
    return "patience" if preset.patience is not None and run.waited >= preset.patience else None


def _worse_half(live: Sequence[_Run], found: dict[int, _Evaluation], preset: Preset) -> list[int]:
    """Return the cells that successive halving ends, of those found by an evaluation."""
    losses = {i: at.loss if math.isfinite(at.loss) else math.inf for i, at in found.items()}
    accuracies = {i: getattr(at, preset.accuracy) for i, at in found.items()}
    return worse_half([run.seed for run in live], losses, accuracies)


def _row(run: _Run, why: str, steps_done: int, steps: int, chosen_by: _Evaluation, test: _Evaluation) -> Row:
    return {
        "lr": run.cell.lr,
        "weight_decay": run.cell.weight_decay,
        "seed": run.seed,
        "steps": steps_done,
        "planned_steps": steps,
        "scored_step": run.scored_step,
        "stopped": why,
        **test.as_row("test"),
        **chosen_by.as_row("select"),
        "curve": run.curve,
    }


def _finite(value: float) -> float | None:
    """Return the rounded value, or None for infinite and NaN, which JSON lacks."""
    return round(value, 6) if math.isfinite(value) else None
