"""The tokens of a run: opened, checked against the config, and measured in bytes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from hybridtron.data.blend_config import STANDARD_LIBRARY, DataSource, source_key, stage_weights
from hybridtron.data.datasets.blended_dataset import BlendedDataset, Stage, TrainingTokens
from hybridtron.data.datasets.indexed_dataset import fingerprint
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.dali import require_dali
from hybridtron.data.preprocessing.report import read_corpus_report, read_report
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

MANY_EPOCHS = 4  # beyond which repeated text is worth less than new text (Muennighoff et al., 2023)


@dataclass(frozen=True)
class HeldOutSource:
    """Held-out tokens of one source; an evaluation reads `sequences` of them, evenly spaced."""

    name: str
    path: str
    share: float  # in the loss of all sources
    tokens: TokenDataset
    sequences: int
    bytes_per_token: float | None  # over the whole file; None where nobody counted the bytes

    def bits_per_byte(self, loss: float) -> float | None:
        """Convert nats per token, with the mean number of bytes per token of the whole file."""
        return None if self.bytes_per_token is None else loss / self.bytes_per_token / math.log(2)


@dataclass(frozen=True)
class HeldOut:
    """The held-out sources. As a whole they are a text that has each source's share of the tokens."""

    sources: tuple[HeldOutSource, ...]

    def half(self, half: int, sequences: int) -> HeldOut:
        """Return the first (0) or the second (1) half of each source, of which an evaluation reads `sequences` at most.

        Raises UserError where a source holds only one sequence.
        """
        halves = [(source, source.tokens.eval_half(half)) for source in self.sources]
        return HeldOut(
            tuple(replace(s, tokens=part, sequences=min(sequences, part.num_eval_windows)) for s, part in halves)
        )

    def loss(self, losses: Sequence[float]) -> float:
        """Return the loss of the whole in nats per token: the mean of the sources' losses by their shares."""
        return sum(source.share * loss for source, loss in zip(self.sources, losses, strict=True))

    def bits_per_byte(self, loss: float) -> float | None:
        """Convert the loss of the whole, with the mean bytes per token by share; None where any are not known."""
        lengths = [source.bytes_per_token for source in self.sources]
        if None in lengths:
            return None
        mean = sum(source.share * (length or 0) for source, length in zip(self.sources, lengths, strict=True))
        return loss / mean / math.log(2)

    def row(self, losses: Sequence[float]) -> dict[str, float | None]:
        """Return the metrics of an evaluation: those of the whole, and of each source where there are several."""
        loss = self.loss(losses)
        row: dict[str, float | None] = {"valid_loss": loss, "valid_bits_per_byte": self.bits_per_byte(loss)}
        if len(self.sources) > 1:
            for source, loss in zip(self.sources, losses, strict=True):
                row[f"valid_loss/{source.name}"] = loss
                row[f"valid_bits_per_byte/{source.name}"] = source.bits_per_byte(loss)
        return row


@dataclass(frozen=True)
class Corpus:
    """`sources` and `fingerprints` of data.train, data.valid and data.tokenizer: as given, and of what they hold.

    Of several sources in data.train or data.valid, each has a key of its own, such as `data.train[1].path`.
    """

    train: TrainingTokens
    train_names: tuple[str, ...]
    held_out: HeldOut | None
    sources: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def usage(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Return the samples, tokens and epochs that training has read of each source after `num_samples` samples.

        Empty where there is one source.
        """
        if not isinstance(self.train, BlendedDataset):
            return {}
        counts, sources = self.train.counts(num_samples).tolist(), self.train.sources
        return {
            name: {"samples": count, "tokens": count * source.seq_len, "epochs": count / source.num_windows}
            for name, count, source in zip(self.train_names, counts, sources, strict=True)
        }

    def repeated(self, num_samples: int) -> Iterator[str]:
        """Yield a warning for each of several sources that training reads more than MANY_EPOCHS times."""
        for name, used in self.usage(num_samples).items():
            if used["epochs"] > MANY_EPOCHS:
                yield f"warning: data.train: the run reads source {name} {used['epochs']:.1f} times"


def open_corpus(config: RunConfig) -> Corpus:
    """Open the token files.

    Raises UserError where they are missing, damaged, too short or of another tokenizer, or the loader is not installed.
    """
    data = config.data
    if data.train is None:
        raise UserError("data.train is missing: expected training tokens, PATH of PATH.bin and PATH.idx, or stdlib")
    if data.loader == "dali":
        require_dali()
    train = data.train_sources
    opened = [_open(config, "train", position, train) for position in range(len(train))]
    held_out = open_held_out(config) if data.valid is not None else None
    sources, fingerprints = {}, {}
    for split, given, datasets in (
        ("train", train, opened),
        ("valid", data.valid_sources, [source.tokens for source in held_out.sources] if held_out else []),
    ):
        for position, (source, dataset) in enumerate(zip(given, datasets, strict=True)):
            key = source_key(f"data.{split}", position, len(given))
            sources[key], fingerprints[key] = source.path, fingerprint(dataset.prefix)
    sources["data.tokenizer"] = data.tokenizer
    fingerprints["data.tokenizer"] = load_tokenizer(data.tokenizer).fingerprint
    names = tuple(source.name or "" for source in train)
    tokens = opened[0] if len(opened) == 1 else BlendedDataset(opened, _stages(config, train))
    return Corpus(tokens, names, held_out, sources, fingerprints)


def open_held_out(config: RunConfig, sequences: int | None = None) -> HeldOut:
    """Open data.valid, which must be given. Raises UserError like open_corpus.

    An evaluation reads `sequences` of each source, or else train.eval_sequences, and at most what the file holds.
    """
    given = config.data.valid_sources
    assert given
    wanted = config.train.eval_sequences if sequences is None else sequences
    total = sum(Fraction(str(source.weight)) for source in given)
    sources = []
    for position, source in enumerate(given):
        tokens = _open(config, "valid", position, given)
        report = read_report(tokens.prefix)
        share, length = float(Fraction(str(source.weight)) / total), report.bytes_per_token if report else None
        number = min(wanted, tokens.num_eval_windows)
        sources.append(HeldOutSource(source.name or "", source.path, share, tokens, number, length))
    return HeldOut(tuple(sources))


def _stages(config: RunConfig, sources: Sequence[DataSource]) -> list[Stage]:
    """Return the stages of a blend; data.train has the weights up to the first of data.stages."""
    stages = [
        Stage(config.train.batch_sizes.samples(stage.start_step), stage_weights(stage, sources))
        for stage in config.data.stages
    ]
    begins = stages and stages[0].start == 0
    return stages if begins else [Stage(0, [source.weight or 0 for source in sources]), *stages]


def _open(config: RunConfig, split: str, position: int, sources: Sequence[DataSource]) -> TokenDataset:
    """Open one of the sources of a split. The order of its samples depends on the run's seed and on itself alone."""
    path = sources[position].path
    prefix = _prefix_of(path, split)
    dataset = TokenDataset(prefix, config.data.seq_len, config.seed)
    dataset.check_vocab(config.model.vocab_size)
    report, tokenizer = read_corpus_report(prefix.parent), load_tokenizer(config.data.tokenizer)
    if report and report.tokenizer.get("fingerprint") != tokenizer.fingerprint:
        raise UserError(
            f"{source_key(f'data.{split}', position, len(sources))} = {path}: was prepared with tokenizer "
            f"{report.tokenizer.get('name')}; expected {tokenizer.name}, which data.tokenizer names"
        )
    return dataset


def _prefix_of(source: str, split: str) -> Path:
    """Return the path without suffix of the token files; the standard library is prepared at its first use."""
    if source != STANDARD_LIBRARY:
        return Path(source)
    from hybridtron.data.preprocessing.standard_library import prepare_standard_library

    return prepare_standard_library(announce=lambda text: print(text, file=sys.stderr)) / split
