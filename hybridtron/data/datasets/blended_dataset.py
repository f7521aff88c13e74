"""Several sources of tokens as one: samples in exact proportion to weights, which may change between stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridtron.data.datasets.proportions import Proportions
from hybridtron.data.datasets.token_dataset import TokenDataset


@dataclass(frozen=True)
class Stage:
    """Weights of the sources from a sample on, 0 for a source that gives none."""

    start: int
    weights: Sequence[float]


class BlendedDataset:
    """Sources that take turns: sample i is the next one, in that source's own order, of the source whose turn it is.

    Which source that is, and how many of its samples come before, is a pure function of the stages and i. Within a
    stage each source has its share of the first n samples within one, for every n. A source goes on in the next stage
    where it was. The first stage starts at sample 0.
    """

    def __init__(self, sources: Sequence[TokenDataset], stages: Sequence[Stage]) -> None:
        self.sources = sources
        self.seq_len = sources[0].seq_len
        self._starts = np.array([stage.start for stage in stages], dtype=np.int64)
        self._active = [np.flatnonzero(stage.weights) for stage in stages]
        self._proportions = [Proportions([weight for weight in stage.weights if weight]) for stage in stages]
        self._before = np.zeros((len(stages), len(sources)), dtype=np.int64)  # samples of each source before each stage
        for stage in range(1, len(stages)):
            self._before[stage] = self._counts_in(stage - 1, int(self._starts[stage]))

    def locate(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample and its index in that source's order, both [len(indices)] int64."""
        indices = np.asarray(indices, dtype=np.int64)
        sources, places = np.empty_like(indices), np.empty_like(indices)
        stages = np.searchsorted(self._starts, indices, side="right") - 1
        for stage in np.unique(stages):
            here = stages == stage
            found, inside = self._proportions[stage].locate(indices[here] - self._starts[stage])
            sources[here] = self._active[stage][found]
            places[here] = self._before[stage][sources[here]] + inside
        return sources, places

    def counts(self, num_samples: int) -> np.ndarray:
        """Return how many of the first `num_samples` samples each source has, [num_sources] int64."""
        return self._counts_in(int(np.searchsorted(self._starts, num_samples, side="right")) - 1, num_samples)

    def _counts_in(self, stage: int, num_samples: int) -> np.ndarray:
        counts = self._before[stage].copy()
        counts[self._active[stage]] += self._proportions[stage].counts(num_samples - int(self._starts[stage]))
        return counts

    def samples(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read training samples, [len(indices), seq_len + 1] int64."""
        sources, places = self.locate(indices)
        tokens = np.empty((len(sources), self.seq_len + 1), dtype=np.int64)
        for source in np.unique(sources):
            here = sources == source
            tokens[here] = self.sources[source].samples(places[here])
        return tokens

    def documents(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Return the lengths of the pieces of documents in each training sample, as its source gives them."""
        sources, places = self.locate(indices)
        pieces: dict[int, np.ndarray] = {}
        for source in np.unique(sources):
            here = np.flatnonzero(sources == source)
            pieces |= zip(here.tolist(), self.sources[source].documents(places[here]), strict=True)
        return [pieces[number] for number in range(len(sources))]

    def check_vocab(self, vocab_size: int) -> None:
        """Raise UserError for a token id outside range(vocab_size), here and for every sample that is read later."""
        for source in self.sources:
            source.check_vocab(vocab_size)


TrainingTokens = TokenDataset | BlendedDataset  # what gives training its samples
