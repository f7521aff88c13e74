"""Micro-batches of one data-parallel rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybridtron.data.datasets.blended_dataset import TrainingTokens
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.errors import UserError

if TYPE_CHECKING:
    import torch

    from hybridtron.documents import Documents


class MicroBatch(NamedTuple):
    """`labels` are `tokens` one position further on; `documents` are given where they are kept apart."""

    tokens: "torch.Tensor"  # [b, s] int64
    labels: "torch.Tensor"  # [b, s] int64
    documents: "Documents | None" = None


def global_batch(
    dataset: TrainingTokens,
    step: int,
    global_batch_size: int | BatchSizes,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    isolate: bool = False,
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of training step `step` (from 0) for data-parallel rank `dp_rank`.

    They hold the samples of `sample_indices`, which raises UserError at the call.
    """
    layout = (step, global_batch_size, micro_batch_size, dp_rank, dp_size)
    documents = step_documents(dataset, *layout) if isolate else None
    return _micro_batches(dataset.samples, sample_indices(*layout), micro_batch_size, documents)


def step_documents(
    dataset: TrainingTokens,
    step: int,
    global_batch_size: int | BatchSizes,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
) -> "list[Documents]":
    """Return the documents of a rank's micro-batches of training step `step`. A loss is the mean over the tokens of the
    global batch that count, whose documents every rank reads."""
    own = sample_indices(step, global_batch_size, micro_batch_size, dp_rank, dp_size)
    first, size = _span(global_batch_size, step)
    every = first + np.arange(size)
    return _documents(dataset.documents(every), own - every[0], micro_batch_size)


def sample_indices(
    step: int, global_batch_size: int | BatchSizes, micro_batch_size: int, dp_rank: int, dp_size: int
) -> np.ndarray:  # fmt: skip
    """Return the samples of training step `step` (from 0) for data-parallel rank `dp_rank`, int64.

    Step t takes samples t * G to (t + 1) * G - 1 of the dataset's order, G = global_batch_size, or where that varies
    the samples after those of the steps before; each rank takes one contiguous block of them. Which samples a step
    takes therefore does not depend on the layout. Raises UserError where G is not a multiple of micro_batch_size *
    dp_size.
    """
    first, size = _span(global_batch_size, step)
    unit = micro_batch_size * dp_size
    if size < 1 or size % unit:
        raise UserError(
            f"train.global_batch_size = {size}: expected a multiple of micro_batch_size "
            f"{micro_batch_size} x data-parallel size {dp_size} "
            f"(nearest: {max(1, round(size / unit)) * unit})"
        )
    share = size // dp_size
    return first + np.arange(dp_rank * share, (dp_rank + 1) * share, dtype=np.int64)


def _span(sizes: int | BatchSizes, step: int) -> tuple[int, int]:
    """Return the first sample of a step, and how many there are."""
    return (sizes if isinstance(sizes, BatchSizes) else BatchSizes(sizes)).span(step)


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
    indices = indices.clip(max=num_samples - 1)
    dataset.eval_windows(indices[:1], num_samples)  # raise at the call, not at the first batch
    documents = None
    if isolate:
        every = dataset.eval_documents(np.arange(num_samples), num_samples)
        documents = _documents(every, indices, micro_batch_size)

    def read(block: np.ndarray) -> np.ndarray:
        return dataset.eval_windows(block, num_samples)

    return _micro_batches(read, indices, micro_batch_size, documents), counted


def _micro_batches(
    read: Callable[[np.ndarray], np.ndarray],
    indices: np.ndarray,
    micro_batch_size: int,
    documents: "Sequence[Documents] | None",
) -> Iterator[MicroBatch]:
    import torch

    for number, block in enumerate(indices.reshape(-1, micro_batch_size)):
        yield micro_batch(torch.from_numpy(read(block)), documents[number] if documents else None)


def micro_batch(windows: "torch.Tensor", documents: "Documents | None" = None) -> MicroBatch:
    """Split windows [b, s + 1] into tokens and labels."""
    return MicroBatch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), documents)


def _documents(every: Sequence[np.ndarray], own: np.ndarray, micro_batch_size: int) -> "list[Documents]":
    """Return the documents of micro-batches from the pieces of every sample of a batch, of which `own` are this rank's.

    A label that begins a document is not predicted from the one before. The weights of the others make the mean over
    all positions of the batch the mean over those that count.
    """
    import torch

    from hybridtron.documents import Documents

    seq_len = int(every[0].sum()) - 1
    counted = sum(seq_len + 1 - len(pieces) for pieces in every)
    joined = np.concatenate(every)
    inputs, weights = [], np.full((len(own), seq_len), len(every) * seq_len / max(1, counted), np.float32)
    for row, pieces in enumerate(every[sample] for sample in own):
        weights[row, np.cumsum(pieces)[:-1] - 1] = 0
        inputs.append(_without_last_token(pieces))
    return [
        Documents(tuple(inputs[i : i + micro_batch_size]), torch.from_numpy(weights[i : i + micro_batch_size]), joined)
        for i in range(0, len(own), micro_batch_size)
    ]


def _without_last_token(pieces: np.ndarray) -> np.ndarray:
    shorter = pieces.copy()
    shorter[-1] -= 1
    return shorter[shorter > 0]
