"""What `data.documents: isolate` costs of a training step, on one thread.

    .venv/bin/python benchmarks/documents.py [--repeats 15] [--documents 4] [--seq-len 1024] [--json FILE]

Models like those of benchmarks/train_step.py: Llama, Mamba-2 and a Nemotron-H hybrid of hidden size 256, in float32;
a step is forward, backward, clipping and fused AdamW on 2,048 tokens. Each sequence holds so many documents, whose
lengths are cut at random and differ from step to step. Steps with documents that flow and with the same ones isolated
take turns; both are timed in processor time, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hybridtron.backends.torch import TorchBackend
from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.config.load import build
from hybridtron.documents import Documents
from hybridtron.memory import keep_freed_memory
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

HIDDEN, TOKENS, VOCAB = 256, 2048, 320
ATTENTION = {"type": "attention", "num_heads": 8, "num_kv_heads": 4}
MAMBA = {"type": "mamba2", "head_dim": 64, "state_dim": 64, "num_groups": 2}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"attn": ATTENTION, "mlp": {"type": "swiglu", "ffn_hidden_size": 1024}}, "4*(attn mlp)"),
    "mamba2": ({"mamba": MAMBA}, "4*mamba"),
    "nemotron_h": (
        {
            "mamba": MAMBA,
            "attn": ATTENTION | {"rotary_fraction": 0.0},
            "mlp": {"type": "mlp", "ffn_hidden_size": 1024, "activation": "relu2"},
        },
        "2*(mamba mlp) attn mlp mamba mlp",
    ),
}


def random_documents(numbers: np.random.Generator, batch: int, seq_len: int, count: int) -> Documents:
    """Cut every sequence at count - 1 random places."""
    cuts = (np.sort(numbers.choice(seq_len - 1, count - 1, replace=False) + 1) for _ in range(batch))
    lengths = tuple(np.diff([0, *cut, seq_len]) for cut in cuts)
    return Documents(lengths, torch.ones(batch, seq_len))


def steps(name: str, seq_len: int, count: int) -> Callable[[Documents | None], float]:
    """Return the function that takes a step and returns its processor time."""
    blocks, pattern = MODELS[name]
    config = build({"hidden_size": HIDDEN, "vocab_size": VOCAB, "blocks": blocks, "pattern": pattern}, ModelConfig)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    tokens = torch.randint(256, (TOKENS // seq_len, seq_len + 1), generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step(documents: Documents | None) -> float:
        start = time.process_time()
        optimizer.zero_grad()
        nll = model(tokens[:, :-1], tokens[:, 1:], documents)[0]
        (nll if documents is None else nll * documents.weights.t()).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return time.process_time() - start

    return step


def compare(name: str, repeats: int, seq_len: int, count: int) -> dict[str, float]:
    """Return the medians of the seconds of both kinds of steps, and of their ratio."""
    numbers, step = np.random.default_rng(0), steps(name, seq_len, count)
    pairs = []
    for _ in range(repeats + 2):
        pairs.append((step(None), step(random_documents(numbers, TOKENS // seq_len, seq_len, count))))
    flow, isolate = (statistics.median(side) for side in zip(*pairs[2:], strict=True))
    return {"flow": flow, "isolate": isolate, "ratio": statistics.median(one / other for other, one in pairs[2:])}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--documents", type=int, default=4, help="in each sequence")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}; {TOKENS} tokens in "
        f"sequences of {options.seq_len}, {options.documents} documents each, hidden {HIDDEN}, float32; load averages "
        f"{' '.join(f'{load:.1f}' for load in os.getloadavg())}\n"
    )
    print("model".ljust(12), "flow, ms".rjust(10), "isolate, ms".rjust(12), "ratio".rjust(7))
    figures = {}
    for name in MODELS:
        row = figures[name] = compare(name, options.repeats, options.seq_len, options.documents)
        print(f"{name:12} {row['flow'] * 1e3:10.0f} {row['isolate'] * 1e3:12.0f} {row['ratio']:7.3f}", flush=True)
    if options.json:
        record = {"date": time.strftime("%Y-%m-%d"), "load": os.getloadavg(), "models": figures}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
