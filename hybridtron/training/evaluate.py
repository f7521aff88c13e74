"""Evaluate a trained model, and generate text with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.checkpoint_reader import load_parameters
from hybridtron.data.batches import eval_batches
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.errors import UserError
from hybridtron.model.generate import generate
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_held_out
from hybridtron.training.device import take_device
from hybridtron.training.run_folder.folder import read_run, suggest_older_checkpoint

LARGEST_EXPONENT = 700  # of e, in a float


class TrainedModel(NamedTuple):
    """A model with its trained parameters, ready to be evaluated in this process."""

    config: RunConfig
    checkpoint: Path
    model: LanguageModel
    device: torch.device


def trained_model(path: Path) -> TrainedModel:
    """Load the model of a run folder or checkpoint into this process, whatever layout and backend trained it.

    It lies on this process's GPU where there is one. Raises UserError for a damaged checkpoint.
    """
    config, checkpoint = read_run(path)
    device = torch.device(take_device())
    model = LanguageModel(config.model, TorchBackend(config.precision.dtype, device, config.model.norm_eps))
    load_checkpoint(model, config, checkpoint)
    return TrainedModel(config, checkpoint, model.eval(), device)


def load_checkpoint(model: LanguageModel, config: RunConfig, checkpoint: Path) -> None:
    """Fill a model with the parameters of a checkpoint; raise UserError where it is damaged."""
    with suggest_older_checkpoint(checkpoint, ": give that path instead"):
        model.load_state_dict(load_parameters(checkpoint, model_tensors(config.model)))


def evaluate_run(path: Path, data: str | None, sequences: int | None) -> dict[str, Any]:
    """Compute loss (nats per token), perplexity and bits per byte over evenly spaced held-out sequences."""
    if sequences is not None and sequences < 1:
        raise UserError(f"sequences = {sequences}: expected at least 1")
    config, _ = read_run(path)
    section = config.data.model_copy(update={"valid": data or config.data.valid})
    if section.valid is None:
        raise UserError(f"{path}: its config has no data.valid; expected data = PREFIX of token files")
    config = config.model_copy(update={"data": section})
    held_out = open_held_out(config, sequences)
    num_tokens = held_out.sequences * config.data.seq_len
    _, checkpoint, model, device = trained_model(path)
    with torch.no_grad():
        micro_batches, counted = eval_batches(held_out.tokens, held_out.sequences, config.train.micro_batch_size, 0, 1)
        losses = [model(*(t.to(device) for t in batch))[0].double().mean(0) for batch in micro_batches]
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
    config, _, model, device = trained_model(path)
    return generate(
        model,
        load_tokenizer(config.data.tokenizer),
        [prompt],
        max_tokens,
        context=config.data.seq_len,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        device=device,
    )[0]
