"""Evaluate a trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridtron.data.loaders.batches import MicroBatch, eval_batches
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import HeldOutSource, open_held_out
from hybridtron.training.process.device import take_device
from hybridtron.training.run_folder.folder import read_run
from hybridtron.training.single_process import Model, load

LARGEST_EXPONENT = 700  # of e, in a float


def evaluate_run(path: Path, data: str | None, sequences: int | None) -> dict[str, Any]:
    """Compute loss (nats per token), perplexity and bits per byte over evenly spaced held-out sequences.

    Of several sources the result has those of each, and of the whole as `HeldOut.loss` defines it.
    """
    if sequences is not None and sequences < 1:
        raise UserError(f"sequences = {sequences}: expected at least 1")
    config, checkpoint = read_run(path)
    section = config.data.model_copy(update={"valid": data or config.data.valid})
    if section.valid is None:
        raise UserError(
            f"data is missing: the config of {path} has no data.valid; expected the prefix of token files, "
            "such as data/NAME/valid for data/NAME/valid.bin"
        )
    config = config.model_copy(update={"data": section})
    held_out = open_held_out(config, sequences)
    model = load(checkpoint, device=take_device())
    losses = [_loss_on(source, model, config) for source in held_out.sources]
    loss, number = held_out.loss(losses), sum(source.sequences for source in held_out.sources)
    result: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": ", ".join(source.path for source in held_out.sources),
        "sequences": number,
        "seq_len": config.data.seq_len,
        "tokens": number * config.data.seq_len,
        **_in_units(loss, held_out.bits_per_byte(loss)),
    }
    if len(losses) > 1:
        result["sources"] = {
            source.name: {
                "data": source.path,
                "share": source.share,
                "sequences": source.sequences,
                **_in_units(loss, source.bits_per_byte(loss)),
            }
            for source, loss in zip(held_out.sources, losses, strict=True)
        }
    return result


def _loss_on(source: HeldOutSource, model: Model, config: RunConfig) -> float:
    with torch.no_grad():
        micro_batches, counted = eval_batches(
            source.tokens,
            source.sequences,
            config.train.micro_batch_size,
            dp_rank=0,
            dp_size=1,
            isolate=config.data.isolates,
        )
        losses = [_losses(model, batch) for batch in micro_batches]
    return float(torch.cat(losses)[:counted].mean())


def _losses(model: Model, batch: MicroBatch) -> Tensor:
    """Compute the loss of each sequence of a micro-batch, [b]."""
    tokens, labels = batch.tokens.to(model.device), batch.labels.to(model.device)
    losses: Tensor = model(tokens, labels, batch.documents)[0].double()  # [s, b]
    if batch.documents is not None:
        losses = losses * batch.documents.weights.t().to(model.device)
    return losses.mean(0)


def _in_units(loss: float, bits_per_byte: float | None) -> dict[str, float | None]:
    perplexity = math.exp(loss) if loss < LARGEST_EXPONENT else None
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits_per_byte}
