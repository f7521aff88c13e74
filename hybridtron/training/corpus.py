"""The tokens of a run: opened, checked against the config, and measured in bytes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hybridtron.data.config import STANDARD_LIBRARY
from hybridtron.data.dali import require_dali
from hybridtron.data.dataset import TokenDataset
from hybridtron.data.indexed_format import fingerprint
from hybridtron.data.report import read_corpus_report, read_report
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig


@dataclass(frozen=True)
class HeldOut:
    """Held-out tokens; an evaluation reads `sequences` of them, evenly spaced."""

    tokens: TokenDataset
    sequences: int
    bytes_per_token: float | None  # over the whole file; None where nobody counted the bytes

    def bits_per_byte(self, loss: float) -> float | None:
        """Convert nats per token, with the mean number of bytes per token of the whole file."""
        return None if self.bytes_per_token is None else loss / self.bytes_per_token / math.log(2)


@dataclass(frozen=True)
class Corpus:
    """`sources` and `fingerprints` of data.train, data.valid and data.tokenizer: as given, and of what they hold."""

    train: TokenDataset
    train_prefix: Path
    held_out: HeldOut | None
    sources: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)


def open_corpus(config: RunConfig) -> Corpus:
    """Open the token files.

    Raises UserError where they are missing, damaged, too short or of another tokenizer, or the loader is not installed.
    """
    data = config.data
    if data.train is None:
        raise UserError("data.train is missing: expected training tokens, PATH of PATH.bin and PATH.idx, or stdlib")
    if data.loader == "dali":
        require_dali()
    train, prefix = _open(config, "train", data.train)
    held_out = open_held_out(config) if data.valid is not None else None
    sources = {"data.train": data.train, "data.tokenizer": data.tokenizer}
    fingerprints = {
        "data.train": fingerprint(prefix),
        "data.tokenizer": load_tokenizer(data.tokenizer).fingerprint,
    }
    if held_out and data.valid is not None:
        sources["data.valid"] = data.valid
        fingerprints["data.valid"] = fingerprint(held_out.tokens.prefix)
    return Corpus(train, prefix, held_out, sources, fingerprints)


def open_held_out(config: RunConfig, sequences: int | None = None) -> HeldOut:
    """Open data.valid, which must be given. Raises UserError like open_corpus.

    An evaluation reads `sequences`, or else train.eval_sequences, and at most what the file holds.
    """
    assert config.data.valid is not None
    tokens, prefix = _open(config, "valid", config.data.valid)
    report = read_report(prefix)
    wanted = config.train.eval_sequences if sequences is None else sequences
    return HeldOut(tokens, min(wanted, tokens.num_eval_windows), report.bytes_per_token if report else None)


def _open(config: RunConfig, split: str, source: str) -> tuple[TokenDataset, Path]:
    prefix = _prefix_of(source, split)
    dataset = TokenDataset(prefix, config.data.seq_len, config.seed)
    dataset.check_vocab(config.model.vocab_size)
    report, tokenizer = read_corpus_report(prefix.parent), load_tokenizer(config.data.tokenizer)
    if report and report.tokenizer.get("fingerprint") != tokenizer.fingerprint:
        raise UserError(
            f"data.{split} = {source}: was prepared with tokenizer {report.tokenizer.get('name')}; expected "
            f"{tokenizer.name}, which data.tokenizer names"
        )
    return dataset, prefix


def _prefix_of(source: str, split: str) -> Path:
    """Return the path without suffix of the token files; the standard library is prepared at its first use."""
    if source != STANDARD_LIBRARY:
        return Path(source)
    from hybridtron.data.standard_library import prepare_standard_library

    return prepare_standard_library(announce=lambda text: print(text, file=sys.stderr)) / split
