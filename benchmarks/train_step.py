"""Training speed of this project and of Hugging Face transformers at equal shapes, in one run, on one thread.

    make .venv/dev
    .venv/bin/python benchmarks/train_step.py [--repeats 7] [--json FILE]

Three models of hidden size 256 (sequences of 256 bytes, batches of 8, float32, vocabulary 320): Llama, Mamba-2 and a
Nemotron-H hybrid. A step is forward, backward, clipping and fused AdamW. Each side runs in a process of its own, as it
would be used, so that ours keeps freed memory as a run of ours does. The two take steps in turn, never at once, and the
ratio is the median over the pairs, so that a machine whose speed drifts favours neither. The share of the peak divides
each side's matrix-multiply FLOP/s, counted on our model for both, by the best rate of a 2048 x 2048 x 2048 product
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

try:
    import transformers
except ModuleNotFoundError:
    print(
        "hybridtron: error: transformers is not installed; make .venv/dev installs what tests and benchmarks compare "
        "with, then run .venv/bin/python benchmarks/train_step.py",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.config.load import build
from hybridtron.memory import keep_freed_memory
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.linear import linear

HIDDEN, SEQ_LEN, BATCH, VOCAB = 256, 256, 8, 320
FFN, HEADS, KV_HEADS, STATE, HEAD_DIM, GROUPS = 1024, 8, 4, 64, 64, 2
ATTENTION = {"type": "attention", "num_heads": HEADS, "num_kv_heads": KV_HEADS}
NEMOTRON_LETTERS = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
MAMBA = {"type": "mamba2", "head_dim": HEAD_DIM, "state_dim": STATE, "num_groups": GROUPS}


def llama() -> tuple[ModelConfig, nn.Module]:
    blocks = {"attn": ATTENTION, "mlp": {"type": "swiglu", "ffn_hidden_size": FFN}}
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    return ours(blocks, "4*(attn mlp)"), transformers.LlamaForCausalLM(config)


def mamba2() -> tuple[ModelConfig, nn.Module]:
    config = transformers.Mamba2Config(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=4, expand=2, head_dim=HEAD_DIM,
        num_heads=2 * HIDDEN // HEAD_DIM, state_size=STATE, n_groups=GROUPS, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    return ours({"mamba": MAMBA}, "4*mamba"), transformers.Mamba2ForCausalLM(config)


def nemotron_h() -> tuple[ModelConfig, nn.Module]:
    """The pattern M-M-*-M- in its authors' letters."""
    blocks = {
        "mamba": MAMBA,
        "attn": ATTENTION | {"rotary_fraction": 0.0},
        "mlp": {"type": "mlp", "ffn_hidden_size": FFN, "activation": "relu2"},
    }
    config = transformers.NemotronHConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN,
        layers_block_type=[NEMOTRON_LETTERS[letter] for letter in "M-M-*-M-"],
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HIDDEN // HEADS,
        mamba_num_heads=2 * HIDDEN // HEAD_DIM, mamba_head_dim=HEAD_DIM, ssm_state_size=STATE, n_groups=GROUPS,
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    return ours(blocks, "2*(mamba mlp) attn mlp mamba mlp"), transformers.NemotronHForCausalLM(config)


def ours(blocks: dict[str, Any], pattern: str) -> ModelConfig:
    return build({"hidden_size": HIDDEN, "vocab_size": VOCAB, "blocks": blocks, "pattern": pattern}, ModelConfig)


MODELS = {"llama": llama, "mamba2": mamba2, "nemotron_h": nemotron_h}


def train_step(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], tokens: Tensor) -> Callable[[], None]:
    """The same step for both sides: fused AdamW, as both train by default, and the gradients clipped to 1."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(tokens[:, :-1], tokens[:, 1:]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def matmul_peak() -> float:
    """Best FLOP/s of ten products of 2048 x 2048 matrices, by PyTorch and by what our linears take."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(product) for _ in range(10) for product in (lambda: a.mm(b), lambda: linear(a, b)))


def our_side(name: str) -> tuple[int, Callable[[], None]]:
    """Number of parameters, and a step."""
    keep_freed_memory()
    config = MODELS[name]()[0]
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    return _side(model, lambda inputs, labels: model(inputs, labels)[0].mean())


def their_side(name: str) -> tuple[int, Callable[[], None]]:
    model = MODELS[name]()[1].train()
    return _side(model, lambda x, labels: F.cross_entropy(model(x).logits.float().flatten(0, 1), labels.flatten()))


def _side(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, Callable[[], None]]:
    tokens = torch.randint(256, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    return sum(p.numel() for p in model.parameters()), train_step(model, loss, tokens)


def serve(connection: Connection, make: Callable[[str], tuple[int, Callable[[], None]]], name: str) -> None:
    """Say how many parameters there are, warm up, then answer each message with the seconds of one step."""
    quiet()
    parameters, step = make(name)
    step()
    step()
    connection.send(parameters)
    while connection.recv():
        connection.send(seconds(step))


def compare(name: str, repeats: int, peak: float) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    connections, processes, parameters = [], [], []
    for make in (our_side, their_side):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, make, name), daemon=True)
        process.start()
        connections.append(here)
        processes.append(process)
        parameters.append(here.recv())  # before the other side starts
    if len(set(parameters)) != 1:
        raise SystemExit(f"{name}: the models differ, {parameters[0]} parameters here, {parameters[1]} there")
    pairs = []
    for _ in range(repeats):
        pair = []
        for connection in connections:
            connection.send(True)
            pair.append(connection.recv())
        pairs.append(pair)
    for connection, process in zip(connections, processes, strict=True):
        connection.send(False)
        process.join()
    own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    flops = 3 * describe(MODELS[name]()[0], SEQ_LEN).flops_forward * BATCH
    return {
        "parameters": parameters[0],
        "tokens_per_s": BATCH * SEQ_LEN / own,
        "transformers_tokens_per_s": BATCH * SEQ_LEN / other,
        "ratio": statistics.median(theirs / mine for mine, theirs in pairs),
        "share_of_peak": flops / own / peak,
        "transformers_share_of_peak": flops / other / peak,
    }


def quiet() -> None:
    """One thread, a fixed seed, and no advice from libraries."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    quiet()
    peak = matmul_peak()
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {BATCH} x {SEQ_LEN} tokens, hidden {HIDDEN}, float32; "
        f"peak {peak / 1e9:.0f} GFLOP/s\n"
    )
    titles = {"parameters": 10, "tokens/s": 9, "transformers": 12, "ratio": 6, "of peak": 8, "theirs": 7}
    print("model".ljust(12), *(title.rjust(width) for title, width in titles.items()))
    figures = {}
    for name in MODELS:
        row = figures[name] = compare(name, options.repeats, peak)
        print(
            f"{name:12} {row['parameters']:10,} {row['tokens_per_s']:9.0f} "
            f"{row['transformers_tokens_per_s']:12.0f} {row['ratio']:6.2f} {row['share_of_peak']:8.1%} "
            f"{row['transformers_share_of_peak']:7.1%}"
        )
    if options.json:
        record = {"date": time.strftime("%Y-%m-%d"), "peak_flops_per_s": peak, "models": figures}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
