"""What is said at the end of a run: held-out loss beside a bigram model's, and a sample of text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hybridtron.data.bigram import bigram_bits_per_byte, fit_bigram
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.distributed.groups import Place
from hybridtron.model.generate import generate
from hybridtron.model.language_model import LanguageModel
from hybridtron.train.config import RunConfig
from hybridtron.train.corpus import Corpus
from hybridtron.train.metrics import read_metrics
from hybridtron.train.run_folder import RunFolder, TrainState

SAMPLE_PROMPT = "def "
LARGEST_BIGRAM_VOCABULARY = 1024  # beyond this a table of pairs says little


def closing_report(
    config: RunConfig, corpus: Corpus, model: LanguageModel, place: Place, state: TrainState, say: Callable[[str], None]
) -> dict[str, Any]:
    """Say how the run ended and return it for summary.json. Every process calls this: sampling needs all of them."""
    summary: dict[str, Any] = asdict(state)
    if place.is_main:
        last = read_metrics(RunFolder(config.run_folder).metrics_file)[-1]
        summary |= {key: last.get(key) for key in ("loss", "valid_loss", "valid_bits_per_byte")}
        summary["bigram_bits_per_byte"] = _bigram(config, corpus)
        if summary["bigram_bits_per_byte"] and summary["valid_bits_per_byte"]:
            say(
                f"held-out text: {summary['valid_bits_per_byte']:.3f} bits per byte; a bigram model of the same "
                f"training text: {summary['bigram_bits_per_byte']:.3f}"
            )
    if config.train.sample_tokens:
        text = generate(
            model,
            load_tokenizer(config.data.tokenizer),
            SAMPLE_PROMPT,
            config.train.sample_tokens,
            context=config.data.seq_len,
            multiple_of=place.tensor_size,
            seed=config.seed,
            device=place.device,
        )
        summary["sample"] = text
        say(f"sample after {SAMPLE_PROMPT!r}:\n{text}")
    return summary


def _bigram(config: RunConfig, corpus: Corpus) -> float | None:
    if corpus.valid is None or corpus.bytes_per_token is None or config.model.vocab_size > LARGEST_BIGRAM_VOCABULARY:
        return None
    table = fit_bigram(corpus.train_prefix, config.model.vocab_size)
    return bigram_bits_per_byte(table, corpus.valid, corpus.eval_sequences, corpus.bytes_per_token)
