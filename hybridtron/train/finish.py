"""What is said at the end of a run: held-out loss beside a bigram model's, and a sample of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    config: RunConfig,
    corpus: Corpus,
    chunks: Sequence[LanguageModel],
    place: Place,
    state: TrainState,
    valid_loss: float | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say how the run ended and return it for summary.json. Every process calls this: sampling needs all of them."""
    summary: dict[str, Any] = asdict(state)
    if place.is_main:
        rows = read_metrics(RunFolder(config.run_folder).metrics_file)
        summary |= {"loss": rows[-1].get("loss") if rows else None, "valid_loss": valid_loss}
        bits = corpus.held_out.bits_per_byte(valid_loss) if corpus.held_out and valid_loss is not None else None
        bigram = _bigram(config, corpus)
        summary |= {"valid_bits_per_byte": bits, "bigram_bits_per_byte": bigram}
        if bits is not None and bigram is not None:
            say(f"held-out text: {bits:.3f} bits per byte; a bigram model of the same training text: {bigram:.3f}")
    if config.train.sample_tokens and config.parallel.pipeline * config.parallel.context > 1:
        say("no sample: the model or its sequences lie over several processes; use hybridtron generate")
    elif config.train.sample_tokens:
        text = generate(
            chunks[0],
            load_tokenizer(config.data.tokenizer),
            SAMPLE_PROMPT,
            config.train.sample_tokens,
            context=config.data.seq_len,
            multiple_of=place.shards.tensor.size,
            seed=config.seed,
            device=place.device,
        )
        summary["sample"] = text
        say(f"sample after {SAMPLE_PROMPT!r}:\n{text}")
    return summary


def _bigram(config: RunConfig, corpus: Corpus) -> float | None:
    held_out = corpus.held_out
    if held_out is None or held_out.bytes_per_token is None or config.model.vocab_size > LARGEST_BIGRAM_VOCABULARY:
        return None
    table = fit_bigram(corpus.train_prefix, config.model.vocab_size)
    return bigram_bits_per_byte(table, held_out.tokens, held_out.sequences, held_out.bytes_per_token)
