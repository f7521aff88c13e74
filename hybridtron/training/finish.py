"""What is said at the end of a run: held-out loss beside a bigram model's, and a sample of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hybridtron.data.bigram import bigram_bits_per_byte, fit_bigram
from hybridtron.data.tokenizer import Tokenizer
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.distributed.groups import ParallelContext
from hybridtron.model.generate import generate
from hybridtron.model.language_model import LanguageModel
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus
from hybridtron.training.metrics import read_metrics
from hybridtron.training.report import say_summary
from hybridtron.training.run_folder.folder import RunFolder, TrainState

PROMPT_TOKENS = 32
LARGEST_BIGRAM_VOCABULARY = 1024  # beyond this a table of pairs says little


def closing_report(
    config: RunConfig,
    corpus: Corpus,
    chunks: Sequence[LanguageModel],
    parallel_context: ParallelContext,
    state: TrainState,
    valid_loss: float | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say how the run ended and return it for summary.json. Every process calls this: sampling needs all of them."""
    summary: dict[str, Any] = asdict(state)
    folder = RunFolder(config.run_folder)
    if parallel_context.is_main:
        rows = read_metrics(folder.metrics_file)
        summary |= {"loss": rows[-1].get("loss") if rows else None, "valid_loss": valid_loss}
        bits = corpus.held_out.bits_per_byte(valid_loss) if corpus.held_out and valid_loss is not None else None
        bigram = _bigram(config, corpus)
        summary |= {"valid_bits_per_byte": bits, "bigram_bits_per_byte": bigram}
    if config.train.sample_tokens and config.parallel.pipeline * config.parallel.context > 1:
        say("no sample: layers or sequences lie over several processes; use hybridtron generate")
    elif config.train.sample_tokens:
        tokenizer = load_tokenizer(config.data.tokenizer)
        summary["sample_prompt"] = _beginning(corpus, tokenizer)
        summary["sample"] = generate(
            chunks[0],
            tokenizer,
            [summary["sample_prompt"]],
            config.train.sample_tokens,
            context=config.data.seq_len,
            tensor_parallel_size=parallel_context.shards.tensor.size,
            seed=config.seed,
            device=parallel_context.device,
        )[0]
    if parallel_context.is_main:
        say_summary(summary, folder, say)
    return summary


def _beginning(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """The first words of the first held-out document, or without any of the first document."""
    window = (corpus.held_out.tokens if corpus.held_out else corpus.train).eval_window(0, 1)[:PROMPT_TOKENS]
    ends = np.flatnonzero(window == tokenizer.eod)
    text = tokenizer.decode(window[: ends[0]] if len(ends) else window)
    return text.rstrip("\ufffd") or text  # a character that the cut went through


def _bigram(config: RunConfig, corpus: Corpus) -> float | None:
    held_out = corpus.held_out
    if held_out is None or held_out.bytes_per_token is None or config.model.vocab_size > LARGEST_BIGRAM_VOCABULARY:
        return None
    table = fit_bigram(corpus.train_prefix, config.model.vocab_size)
    return bigram_bits_per_byte(table, held_out.tokens, held_out.sequences, held_out.bytes_per_token)
