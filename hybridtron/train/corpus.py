"""The tokens of a run: opened, checked against the config, and measured in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hybridtron.data.config import STANDARD_LIBRARY
from hybridtron.data.dataset import TokenDataset
from hybridtron.data.report import read_report
from hybridtron.distributed import cpu_compat
from hybridtron.errors import UserError
from hybridtron.train.config import RunConfig


@dataclass(frozen=True)
class Corpus:
    train: TokenDataset
    valid: TokenDataset | None
    train_prefix: Path
    eval_sequences: int = 0  # of one evaluation
    bytes_per_token: float | None = None  # of the held-out text; None where nobody counted the bytes

    def bits_per_byte(self, loss: float) -> float | None:
        return None if self.bytes_per_token is None else bits_per_byte(loss, self.bytes_per_token)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """From nats per token."""
    return loss / bytes_per_token / math.log(2)


def open_corpus(config: RunConfig, data_parallel_size: int) -> Corpus:
    """Open the token files; raises UserError when they are missing, damaged or too short.

    An evaluation reads train.eval_sequences, at most what the file holds, in equal portions per process.
    """
    cpu_compat.install()  # the indexed datasets are megatron-core's
    data = config.data
    train_prefix = prefix_of(data.train, "train")
    train = TokenDataset(train_prefix, data.seq_len, config.seed)
    train.check_vocab(config.model.vocab_size)
    if data.valid is None:
        return Corpus(train, None, train_prefix)
    valid_prefix = prefix_of(data.valid, "valid")
    valid = TokenDataset(valid_prefix, data.seq_len, config.seed)
    valid.check_vocab(config.model.vocab_size)
    portion = config.train.micro_batch_size * data_parallel_size
    if valid.num_eval_windows < portion:
        raise UserError(
            f"data.valid = {data.valid}: holds {valid.num_eval_windows} sequences of {data.seq_len} tokens; expected "
            f"at least {portion}, train.micro_batch_size x data-parallel processes"
        )
    sequences = max(portion, min(config.train.eval_sequences, valid.num_eval_windows) // portion * portion)
    report = read_report(valid_prefix)
    return Corpus(train, valid, train_prefix, sequences, report.bytes / report.tokens if report else None)


def prefix_of(source: str, split: str) -> Path:
    """Path without suffix of the token files; the standard library is prepared when it is first asked for."""
    if source != STANDARD_LIBRARY:
        return Path(source)
    from hybridtron.data.standard_library import prepare_standard_library

    return prepare_standard_library() / split
