"""Micro-batches of one data-parallel rank."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybridtron.data.dataset import TokenDataset
from hybridtron.errors import UserError

if TYPE_CHECKING:
    import torch


class MicroBatch(NamedTuple):
    """`labels` are `tokens` one position further on."""

    tokens: "torch.Tensor"  # [b, s] int64
    labels: "torch.Tensor"  # [b, s] int64


def global_batch(
    dataset: TokenDataset, step: int, global_batch_size: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of training step `step` (from 0) for data-parallel rank `dp_rank`.

    They hold the samples of `sample_indices`, which raises UserError at the call.
    """
    indices = sample_indices(step, global_batch_size, micro_batch_size, dp_rank, dp_size)
    return _micro_batches(dataset.samples, indices, micro_batch_size)


def sample_indices(
    step: int, global_batch_size: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> np.ndarray:  # fmt: skip
    """Return the samples of training step `step` (from 0) for data-parallel rank `dp_rank`, int64.

    Step t takes samples t * G to (t + 1) * G - 1 of the dataset's order, G = global_batch_size; each rank takes one
    contiguous block of them. Which samples a step takes therefore does not depend on the layout. Raises UserError where
    G is not a multiple of micro_batch_size * dp_size.
    """
    unit = micro_batch_size * dp_size
    if global_batch_size < 1 or global_batch_size % unit:
        raise UserError(
            f"train.global_batch_size = {global_batch_size}: expected a multiple of micro_batch_size "
            f"{micro_batch_size} x data-parallel size {dp_size} "
            f"(nearest: {max(1, round(global_batch_size / unit)) * unit})"
        )
    share = global_batch_size // dp_size
    return step * global_batch_size + np.arange(dp_rank * share, (dp_rank + 1) * share, dtype=np.int64)


def eval_batches(
    dataset: TokenDataset, num_samples: int, micro_batch_size: int, dp_rank: int, dp_size: int, multiple: int = 1
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
    return _micro_batches(lambda block: dataset.eval_windows(block, num_samples), indices, micro_batch_size), counted


def _micro_batches(
    read: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, micro_batch_size: int
) -> Iterator[MicroBatch]:
    import torch

    for start in range(0, len(indices), micro_batch_size):
        yield micro_batch(torch.from_numpy(read(indices[start : start + micro_batch_size])))


def micro_batch(windows: "torch.Tensor") -> MicroBatch:
    """Split windows [b, s + 1] into tokens and labels."""
    return MicroBatch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
