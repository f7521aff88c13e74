"""Train all cells of one setting, for one seed or several, and score them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import hybridtron
from hybridtron.mad.accuracy import Accuracy, accuracy
from hybridtron.mad.adamw import StackedAdamW
from hybridtron.mad.data import generate
from hybridtron.mad.presets import Cell, Preset
from hybridtron.mad.stack import Stack, can_stack
from hybridtron.mad.subject import Subject
from hybridtron.mad.tasks import Setting, complete, task

LOWEST_LR = 1e-6  # to which the cosine falls


@dataclass
class _Run:
    """One cell with one seed."""

    seed: int
    cell: Cell
    curve: list[list[float | None]] = field(default_factory=list)
    best: float = -1.0
    waited: int = 0  # evaluations since `best`
    row: dict[str, Any] | None = None


def train_setting(
    subject: Subject,
    task_name: str,
    setting: Setting,
    preset: Preset,
    seeds: Sequence[int],
    *,
    device: str = "cpu",
    together: bool | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per seed and cell; see docs/mad.md for their fields.

    `together`: gradients of all cells in one pass; by default on a GPU, where all layers can. On a CPU core passes cell
    by cell are faster, by the fused operations that torch.func cannot follow. `on_step(done, planned)` is called after
    every step.
    """
    began = time.perf_counter()
    chosen, whole = task(task_name), complete(task_name, setting)
    seq_len, vocab_size = chosen.sequence_length(whole), int(whole["vocab_size"])
    starts = [subject.start(vocab_size, seq_len, chosen.autoencoder, seed) for seed in seeds]
    config = starts[0][0]
    if together is None:
        together = device != "cpu"
    runs = [_Run(seed, cell) for seed in seeds for cell in preset.cells]
    stack = Stack(
        config,
        chosen.autoencoder,
        [values for _, values, _ in starts for _ in preset.cells],
        starts[0][2],
        device=device,
        together=together and can_stack(config),
    )
    splits = {
        split: _examples(task_name, whole, split, seeds, device, None if split == "train" else preset.eval_examples)
        for split in dict.fromkeys(("train", preset.select_split, "test"))
    }
    num_examples = int(whole["num_train_examples"])
    steps, per_epoch = preset.steps(num_examples), preset.steps_per_epoch(num_examples)
    every = max(1, min(steps, math.ceil(steps / preset.evaluations)))
    optimizer = StackedAdamW(stack.flat, preset.betas)
    decays = torch.ones_like(stack.decay) if preset.quirks else stack.decay
    live = list(runs)
    which = torch.arange(len(seeds), device=device).repeat_interleave(len(preset.cells))  # seed of each live cell
    peak = torch.tensor([[run.cell.lr] for run in runs], device=device)
    decay = torch.tensor([[run.cell.weight_decay] for run in runs], device=device)
    total, since = torch.zeros(len(runs), device=device), 0
    for step in range(steps):
        if step % per_epoch == 0:
            order = _orders(seeds, step // per_epoch, num_examples, device)
        start = step % per_epoch * preset.batch_size
        tokens, targets = _batch(splits["train"], order[:, start : start + preset.batch_size], which)
        losses, gradients = stack.gradients(tokens, targets)
        lr = _lr(peak, step, steps, preset)
        optimizer.step(stack.flat, gradients, lr, decay * decays)
        total, since = total + losses, since + 1
        if on_step:
            on_step(step + 1, steps)
        if (step + 1) % every and step + 1 < steps:
            continue
        found, valid_loss = _evaluate(stack, splits[preset.select_split], which, vocab_size)
        mean_loss = (total / since).tolist()
        total, since = torch.zeros_like(total), 0
        ended: dict[int, str] = {}
        for i, run in enumerate(live):
            micro, macro = float(found.micro[i]), float(found.macro[i])
            run.curve.append([step + 1, _finite(mean_loss[i]), round(micro, 6), round(macro, 6)])
            why = _ending(run, mean_loss[i], micro if preset.accuracy == "micro" else macro, preset)
            if step + 1 == steps:
                why = why or "end"
            if why:
                ended[i] = why
        if not ended:
            continue
        test, test_loss = found, valid_loss
        if preset.select_split != "test":
            test, test_loss = _evaluate(stack, splits["test"], which, vocab_size)
        for i, why in ended.items():
            live[i].row = _row(live[i], why, step + 1, steps, found, valid_loss, test, test_loss, i)
        staying = torch.tensor([i for i in range(len(live)) if i not in ended], dtype=torch.long, device=device)
        live = [run for run in live if run.row is None]
        if not live:
            break
        stack.keep(staying)
        optimizer.keep(staying)
        which, peak, decay, total = which[staying], peak[staying], decay[staying], total[staying]
    about = {**_about(subject, preset), "task": task_name, "setting": whole}
    seconds = round(time.perf_counter() - began, 2)
    version = {"seconds": seconds, "device": _device_name(device), "version": hybridtron.__version__}
    return [{**about, **run.row, **version} for run in runs if run.row is not None]


def _about(subject: Subject, preset: Preset) -> dict[str, Any]:
    """What all rows of one subject and preset have alike."""
    return {
        "architecture": subject.name,
        "pattern": subject.pattern,
        "notes": list(subject.notes),
        **subject.account(),
        "fingerprint": subject.fingerprint(),
        "preset": preset.name,
        "protocol": preset.fingerprint(),
        "accuracy": preset.accuracy,
        "selected_on": preset.select_split,
        "num_cells": len(preset.cells),
    }


def _examples(
    task_name: str, setting: Setting, split: str, seeds: Sequence[int], device: str, count: int | None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all seeds, each [seeds, examples, length]."""
    drawn = [generate(task_name, setting, split, seed, num_examples=count) for seed in seeds]
    inputs, targets = (torch.stack([torch.from_numpy(arrays) for arrays in some]) for some in zip(*drawn, strict=True))
    return inputs.to(device), targets.to(device)


def _orders(seeds: Sequence[int], epoch: int, num_examples: int, device: str) -> Tensor:
    """The order of the examples in an epoch, for each seed: [seeds, examples]."""
    orders = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        orders.append(torch.randperm(num_examples, generator=generator))
    return torch.stack(orders).to(device)


def _batch(examples: tuple[Tensor, Tensor], chosen: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `chosen` [seeds, b] of the examples; with several seeds once for every cell, [cells, b, s]."""
    batches = [torch.stack([part[i] for part, i in zip(tensor, chosen, strict=True)]) for tensor in examples]
    return _shared(batches[0], which), _shared(batches[1], which)


def _shared(tensor: Tensor, which: Tensor) -> Tensor:
    return tensor[0] if len(tensor) == 1 else tensor[which]


def _lr(peak: Tensor, step: int, steps: int, preset: Preset) -> Tensor:
    """[cells, 1], of the update after `step` others."""
    if preset.schedule == "constant":
        return peak
    return LOWEST_LR + (peak - LOWEST_LR) * (0.5 * (1 + math.cos(math.pi * step / steps)))


def _evaluate(
    stack: Stack, examples: tuple[Tensor, Tensor], which: Tensor, vocab_size: int
) -> tuple[Accuracy, list[float]]:
    tokens, targets = (_shared(tensor, which) for tensor in examples)
    predictions, losses = stack.predict(tokens, targets)
    return accuracy(predictions, targets, vocab_size), losses.tolist()


def _ending(run: _Run, loss: float, reached: float, preset: Preset) -> str | None:
    """Why a cell stops after an evaluation, if it does."""
    if not math.isfinite(loss):
        return "diverged"
    if reached >= preset.stop_at:
        return "reached"
    if reached > run.best + preset.least_gain:
        run.best, run.waited = reached, 0
    else:
        run.waited += 1
    return "patience" if preset.patience is not None and run.waited >= preset.patience else None


def _row(
    run: _Run, why: str, steps_done: int, steps: int, chosen_by: Accuracy, chosen_loss: list[float], test: Accuracy,
    test_loss: list[float], i: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "lr": run.cell.lr,
        "weight_decay": run.cell.weight_decay,
        "seed": run.seed,
        "steps": steps_done,
        "planned_steps": steps,
        "stopped": why,
        "test_micro": float(test.micro[i]),
        "test_macro": float(test.macro[i]),
        "test_loss": _finite(test_loss[i]),
        "select_micro": float(chosen_by.micro[i]),
        "select_macro": float(chosen_by.macro[i]),
        "select_loss": _finite(chosen_loss[i]),
        "curve": run.curve,
    }


def _finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return round(value, 6) if math.isfinite(value) else None


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
