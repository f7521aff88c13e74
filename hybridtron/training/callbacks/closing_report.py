"""The end of a run: held-out loss beside a bigram model's, and a sample of text; summary.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from hybridtron.data.bigram import LARGEST_VOCABULARY, bigram_bits_per_byte, fit_bigram
from hybridtron.data.datasets.blended_dataset import BlendedDataset
from hybridtron.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from hybridtron.files import replace_file
from hybridtron.model.generation.generate import generate
from hybridtron.model.generation.pipeline import Pipeline
from hybridtron.training.callbacks.base import Callback, TrainContext
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus
from hybridtron.training.run_folder.effective_time import read_effective_time
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.summary import print_summary

PROMPT_TOKENS = 32


class ClosingReport(Callback):
    """Print how the run ended and write summary.json; `summary` holds its content."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = {}

    def on_train_end(self, context: TrainContext) -> None:
        """Report on the last step. Sampling needs all processes; the main one prints and writes."""
        self.summary = asdict(context.state)
        is_main, mttf_hours = context.parallel_context.is_main, context.config.checkpoint.mttf_hours
        if is_main:
            self.summary |= self._losses(context)
            if initial := self.folder.read_environment().get("init_from"):
                self.summary["init_from"] = initial
            if used := context.corpus.usage(context.state.tokens // context.config.data.seq_len):
                self.summary["train_sources"] = used
            self.summary["effective_time"] = read_effective_time(self.folder.path, mttf_hours).as_json()
        self.summary |= _sample(context)
        if is_main:
            print_summary(self.summary, self.folder, context.print_line, mttf_hours)
            replace_file(self.folder.summary_file, json.dumps(self.summary, indent=2) + "\n")

    def _losses(self, context: TrainContext) -> dict[str, Any]:
        """Return the last training loss, the held-out loss and bits per byte, and a bigram model's bits per byte."""
        rows = read_metrics(self.folder.metrics_file)
        held_out, loss = context.corpus.held_out, context.valid_loss
        losses = {
            "loss": rows[-1].get("loss") if rows else None,
            "valid_loss": loss,
            "valid_bits_per_byte": held_out.bits_per_byte(loss) if held_out and loss is not None else None,
            "bigram_bits_per_byte": _bigram(context.config, context.corpus),
            **({} if context.ema_valid_loss is None else {"ema_valid_loss": context.ema_valid_loss}),
        }
        if held_out and loss is not None and len(held_out.sources) > 1:
            losses["valid_sources"] = {
                source.name: {"loss": loss, "bits_per_byte": source.bits_per_byte(loss)}
                for source, loss in zip(held_out.sources, context.valid_losses, strict=True)
            }
        return losses


def _sample(context: TrainContext) -> dict[str, str]:
    """Return train.sample_tokens tokens of text and the prompt they continue; empty where none are asked for."""
    config, corpus = context.config, context.corpus
    if not config.train.sample_tokens:
        return {}
    if config.parallel.context > 1:
        context.print_line("no sample: sequences lie over several processes; use hybridtron generate")
        return {}
    tokenizer, group = load_tokenizer(config.data.tokenizer), context.parallel_context.pipeline_group
    prompt = _prompt(corpus, tokenizer)
    (completion,) = generate(
        context.chunks[0] if config.parallel.pipeline == 1 else Pipeline(context.chunks, group),
        tokenizer,
        [prompt],
        config.train.sample_tokens,
        context=config.data.seq_len,
        seed=config.seed,
        start_document=not config.data.isolates,
        device=context.parallel_context.device,
    )
    return {"sample_prompt": prompt, "sample": completion.text}


def _prompt(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return the first words of the first held-out document, or without held-out tokens of the first document."""
    train = corpus.train.sources[0] if isinstance(corpus.train, BlendedDataset) else corpus.train
    tokens = corpus.held_out.sources[0].tokens if corpus.held_out else train
    window = tokens.eval_window(0, 1)[:PROMPT_TOKENS]
    ends = np.flatnonzero(window == tokenizer.eod)
    text = tokenizer.decode(window[: ends[0]] if len(ends) else window)
    return text.rstrip("\ufffd") or text  # the window may end within a character


def _bigram(config: RunConfig, corpus: Corpus) -> float | None:
    """Return the bits per byte of a bigram model of the training tokens on the held-out tokens, if they are known.

    There is none for several sources of either.
    """
    if isinstance(corpus.train, BlendedDataset) or corpus.held_out is None or len(corpus.held_out.sources) > 1:
        return None
    (source,) = corpus.held_out.sources
    if source.bytes_per_token is None or config.model.vocab_size > LARGEST_VOCABULARY:
        return None
    table = fit_bigram(corpus.train.prefix, config.model.vocab_size)
    return bigram_bits_per_byte(table, source.tokens, source.sequences, source.bytes_per_token, config.data.isolates)
