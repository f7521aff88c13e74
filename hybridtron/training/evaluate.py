"""Use what a run has trained: evaluate it, let it write."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hybridtron.data.batches import eval_batches
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.environment import Environment
from hybridtron.distributed.groups import ParallelContext, process_groups
from hybridtron.errors import UserError
from hybridtron.model.generate import generate
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.training.build import build_chunks
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_held_out
from hybridtron.training.run_folder.folder import naming_an_older_one, read_run

LARGEST_EXPONENT = 700  # of e, in a float


@contextlib.contextmanager
def trained_model(path: Path) -> Iterator[tuple[RunConfig, Path, LanguageModel, ParallelContext]]:
    """The model of a run folder or checkpoint in this one process, whatever layout trained it."""
    config, checkpoint = read_run(path)
    config = config.model_copy(update={"parallel": ParallelConfig()})
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        from hybridtron.distributed.checkpoint import load_model

        (model,), _ = build_chunks(config, parallel_context)
        with naming_an_older_one(checkpoint, ": give that path instead"):
            load_model(checkpoint, [model], model_tensors(config.model), parallel_context)
        yield config, checkpoint, model.eval(), parallel_context


def evaluate_run(path: Path, data: str | None, sequences: int | None) -> dict[str, Any]:
    """Loss (nats per token), perplexity and bits per byte over evenly spaced held-out sequences."""
    if sequences is not None and sequences < 1:
        raise UserError(f"sequences = {sequences}: expected at least 1")
    config, _ = read_run(path)
    section = config.data.model_copy(update={"valid": data or config.data.valid})
    if section.valid is None:
        raise UserError(f"{path}: its config has no data.valid; expected data = PREFIX of token files")
    config = config.model_copy(update={"data": section})
    held_out = open_held_out(config, sequences)
    num_tokens = held_out.sequences * config.data.seq_len
    with trained_model(path) as (_, checkpoint, model, parallel_context), torch.no_grad():
        micro_batches, counted = eval_batches(held_out.tokens, held_out.sequences, config.train.micro_batch_size, 0, 1)
        losses = [model(*(t.to(parallel_context.device) for t in batch))[0].double().mean(0) for batch in micro_batches]
    loss = float(torch.cat(losses)[:counted].mean())
    return {
        "checkpoint": str(checkpoint),
        "data": section.valid,
        "sequences": held_out.sequences,
        "seq_len": config.data.seq_len,
        "tokens": num_tokens,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < LARGEST_EXPONENT else None,
        "bits_per_byte": held_out.bits_per_byte(loss),
    }


def generate_from_run(path: Path, prompt: str, max_tokens: int, temperature: float, top_k: int, seed: int) -> str:
    """Continue the prompt with the run's model."""
    with trained_model(path) as (config, _, model, parallel_context):
        return generate(
            model,
            load_tokenizer(config.data.tokenizer),
            [prompt],
            max_tokens,
            context=config.data.seq_len,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            device=parallel_context.device,
        )[0]
