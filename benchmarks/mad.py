"""The MAD laboratory's speed: examples, and six optimiser cells at once against one after another.

    .venv/bin/python benchmarks/mad.py [--device cuda] [--layers mh-hyena swiglu ...] [--batch-size 128] [--json FILE]

Data: seconds of one core for all 14,080 examples of a setting. Training: processor time of one step of all six cells
(seconds by the clock on a GPU), as one stacked pass, cell by cell over the same stack, and by a loop as mad-lab writes
it: one model after another, each with its data loader, loss, backward pass, PyTorch's AdamW and the accuracy of every
batch; in float32 everywhere. The loop has the layers in plain PyTorch operations (as mad-lab has them), and
once more the layers of this project with their fused operations. Each way runs in a process of its own, as it would be
used, so that cells keep freed memory as a suite does. They take steps in turn, never at once, and a ratio is the median
over the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.mad import TASKS, from_layers, generate, settings
from hybridtron.mad.models.proxy_model import ProxyModel, initial_values
from hybridtron.mad.scoring.accuracy import accuracy
from hybridtron.mad.tasks.protocol import IGNORE, setting_text
from hybridtron.mad.training.adamw import StackedAdamW
from hybridtron.mad.training.presets import GRID, PRESETS
from hybridtron.mad.training.stack import Stack
from hybridtron.memory import keep_freed_memory
from hybridtron.ops import dispatch

LAYERS = ["mh-attention", "swiglu", "mh-attention", "swiglu"]
BETAS = PRESETS["paper"].betas
WAYS = ("stacked", "cell by cell", "plain loop", "plain loop, fused layers")
Step = Callable[[], None]


def data_seconds(repeats: int) -> dict[str, float]:
    """The best of several, for the baseline of each task and its costliest setting."""
    found = {}
    for task in TASKS:
        longest = max(settings(task), key=lambda setting: (setting["seq_len"], setting["vocab_size"]))
        widest = max(settings(task), key=lambda setting: setting["vocab_size"])
        for setting in (settings(task)[0], longest, widest):
            name = f"{task} {setting_text(task, setting)}"
            found[name] = min(_thread_seconds(task, setting) for _ in range(repeats))
    return found


def _thread_seconds(task: str, setting: dict[str, int | float]) -> float:
    start = time.thread_time()
    for split in ("train", "test"):
        generate(task, setting, split, seed=0)
    return time.thread_time() - start


def stacked(layers: list[str], tokens: torch.Tensor, targets: torch.Tensor, device: str, one_pass: bool) -> Step:
    config = from_layers(layers).model(16, tokens.shape[1])
    stack = Stack(config, False, [initial_values(config, False, 0)] * len(GRID), device=device, one_pass=one_pass)
    optimizer = StackedAdamW(stack.flat, BETAS)
    lr = torch.tensor([[cell.lr] for cell in GRID], device=device)
    decay = torch.tensor([[cell.weight_decay] for cell in GRID], device=device) * stack.decay

    def step() -> None:
        _, gradients = stack.gradients(tokens, targets)
        optimizer.step(stack.flat, gradients, lr, decay)

    return step


def one_model_after_another(layers: list[str], tokens: torch.Tensor, targets: torch.Tensor, device: str) -> Step:
    """Train model by model, as mad-lab writes it, without the cost of its bookkeeping."""
    config = from_layers(layers).model(16, tokens.shape[1])
    runs = []
    for cell in GRID:
        model = ProxyModel(config, False, device)
        model.load_state_dict(initial_values(config, False, 0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=cell.lr, weight_decay=cell.weight_decay, betas=BETAS)
        loader = DataLoader(TensorDataset(tokens.cpu(), targets.cpu()), batch_size=len(tokens), shuffle=True)
        runs.append((model, optimizer, _forever(loader)))

    def step() -> None:
        for model, optimizer, batches in runs:
            inputs, wanted = (part.to(device) for part in next(batches))
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
            accuracy(logits.argmax(-1).unsqueeze(0), wanted, config.vocab_size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def _forever(loader: DataLoader[Any]) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def train_seconds(layers: list[str], batch_size: int, device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of all six cells, per way and round; the first round warms up and does not count."""
    context = multiprocessing.get_context("spawn")
    sides = {}
    for way in WAYS:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, way, layers, batch_size, device), daemon=True).start()
        here.recv()  # it has begun, before the next does
        sides[way] = here
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):
        for way, side in sides.items():
            side.send(True)
            seconds = side.recv()
            if turn:
                found[way].append(seconds)
    for side in sides.values():
        side.send(False)
    return found


def serve(connection: Connection, way: str, layers: list[str], batch_size: int, device: str) -> None:
    """Answer each message with the seconds of one step."""
    torch.set_num_threads(1)
    arrays = generate("in-context-recall", {}, "train", seed=0, num_examples=batch_size)
    tokens, targets = (torch.from_numpy(array).to(device) for array in arrays)
    if way in ("stacked", "cell by cell"):
        if device == "cpu":
            keep_freed_memory()
        step = stacked(layers, tokens, targets, device, one_pass=way == "stacked")
    else:
        step = one_model_after_another(layers, tokens, targets, device)
    plain = patch.object(dispatch, "OPERATIONS", plain_operations()) if way == "plain loop" else nullcontext()
    with plain:
        connection.send(True)
        while connection.recv():
            connection.send(_seconds(step, device))


def plain_operations() -> dict[str, dispatch.Operation]:
    """The table of operations with the plain forms alone, where there are any; Hyena's convolutions are by Fourier
    transforms, as mad-lab has them."""
    names = ("plain PyTorch", "PyTorch", "PyTorch, shifted multiply-adds", "PyTorch, by Fourier transforms")
    table = {}
    for name, operation in dispatch.OPERATIONS.items():
        plain = [one._replace(accepts=lambda *_: True) for one in operation.implementations if one.name in names]
        table[name] = operation._replace(implementations=tuple(plain) or operation.implementations)
    return table


def _seconds(step: Step, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = time.perf_counter if device == "cuda" else time.process_time
    wait()
    start = clock()
    step()
    wait()
    return clock() - start


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", nargs="+", default=LAYERS, metavar="LAYER")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--no-data", action="store_true", help="training alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from_layers(options.layers)  # raises for a layer that there is not
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {platform.machine()}, one thread"
    print(f"{device}; torch {torch.__version__}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    data = {} if options.no_data else data_seconds(options.repeats)
    for name, seconds in data.items():
        print(f"{name:55} {seconds:6.2f} s")
    train = train_seconds(options.layers, options.batch_size, options.device, options.repeats)
    print(f"a step of six cells, {' '.join(options.layers)}, {options.batch_size} x 127 tokens")
    for name, times in train.items():
        ratios = [plain / own for plain, own in zip(train["plain loop"], times, strict=True)]
        print(f"{name:25} {statistics.median(times):8.3f} s   plain loop / this {statistics.median(ratios):5.2f}")
    if options.json:
        options.json.write_text(json.dumps({"device": device, "data": data, "train": train}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
