"""Micro-batches of one data-parallel rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybridtron.data.datasets.blended_dataset import TrainingTokens
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.sampler import BatchSampler

if TYPE_CHECKING:
    import torch

    from hybridtron.documents import Documents


class MicroBatch(NamedTuple):
    """`labels` are `tokens` one position further on; `documents` are given where they are kept apart."""

    tokens: "torch.Tensor"  # [b, s] int64
    labels: "torch.Tensor"  # [b, s] int64
    documents: "Documents | None" = None


def global_batch(
    dataset: TrainingTokens, step: int, sampler: BatchSampler, isolate: bool = False
) -> Iterator[MicroBatch]:
    """Yield a rank's micro-batches of training step `step` (from 0). Raises UserError like the sampler, at the call."""
    indices = sampler.indices(step)
    documents = step_documents(dataset, step, sampler) if isolate else None
    return _micro_batches(dataset.samples, indices, documents)


def step_documents(dataset: TrainingTokens, step: int, sampler: BatchSampler) -> "list[Documents]":
    """Return the documents of a rank's micro-batches of training step `step`. A loss is the mean over the tokens of the
    global batch that count, whose documents every rank reads."""
    own = sampler.indices(step)
    first, size = sampler.sizes.span(step)
    return _documents(dataset.documents(first + np.arange(size)), own - first)


def eval_batches(
    dataset: TokenDataset,
    num_samples: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    multiple: int = 1,
    isolate: bool = False,
) -> tuple[Iterator[MicroBatch], int]:
    """Return `dp_rank`'s micro-batches of the `num_samples` fixed evaluation windows, and how many sequences count.

    Every rank has equally many micro-batches, a multiple of `multiple`, all of one size: those after the sequences that
    count repeat the last window. So the windows that count are the same in every layout.
    """
    unit = micro_batch_size * multiple
    share = -(-num_samples // (dp_size * unit)) * unit
    indices = np.arange(dp_rank * share, (dp_rank + 1) * share, dtype=np.int64)
    counted = int((indices < num_samples).sum())
    own = indices.clip(max=num_samples - 1).reshape(-1, micro_batch_size)
    dataset.eval_windows(own[0, :1], num_samples)  # raise at the call, not at the first batch
    documents = None
    if isolate:
        documents = _documents(dataset.eval_documents(np.arange(num_samples), num_samples), own)

    def read(block: np.ndarray) -> np.ndarray:
        return dataset.eval_windows(block, num_samples)

    return _micro_batches(read, own, documents), counted


def _micro_batches(
    read: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, documents: "Sequence[Documents] | None"
) -> Iterator[MicroBatch]:
    """Yield a micro-batch for each row of `indices`."""
    import torch

    for number, block in enumerate(indices):
        yield micro_batch(torch.from_numpy(read(block)), documents[number] if documents else None)


def micro_batch(windows: "torch.Tensor", documents: "Documents | None" = None) -> MicroBatch:
    """Split windows [b, s + 1] into tokens and labels."""
    return MicroBatch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), documents)


def _documents(every: Sequence[np.ndarray], own: np.ndarray) -> "list[Documents]":
    """Return the documents of micro-batches from the pieces of every sample of a batch, of which `own` are this rank's,
    a micro-batch in each row.

    A label that begins a document is not predicted from the one before. The weights of the others make the mean over
    all positions of the batch the mean over those that count.
    """
    import torch

    from hybridtron.documents import Documents

    seq_len = int(every[0].sum()) - 1
    counted = sum(seq_len + 1 - len(pieces) for pieces in every)
    scale, joined = len(every) * seq_len / max(1, counted), np.concatenate(every)
    documents = []
    for samples in own:
        pieces = [every[sample] for sample in samples]
        weights = np.full((len(samples), seq_len), scale, np.float32)
        for row, lengths in zip(weights, pieces, strict=True):
            row[np.cumsum(lengths)[:-1] - 1] = 0
        documents.append(Documents(tuple(map(_without_last_token, pieces)), torch.from_numpy(weights), joined))
    return documents


def _without_last_token(pieces: np.ndarray) -> np.ndarray:
    shorter = pieces.copy()
    shorter[-1] -= 1
    return shorter[shorter > 0]
