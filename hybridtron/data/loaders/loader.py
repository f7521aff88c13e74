"""What gives training its micro-batches, by data.loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hybridtron.data.datasets.blended_dataset import TrainingTokens
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import MicroBatch, global_batch

if TYPE_CHECKING:
    import torch

Loader = Callable[[int], Sequence[MicroBatch]]  # the micro-batches of a step, counted from 0


def make_loader(
    kind: str,
    dataset: TrainingTokens,
    global_batch_size: int | BatchSizes,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    device: torch.device,
    isolate: bool = False,
) -> Loader:
    """Return the loader of one data-parallel rank; the micro-batches of a step do not depend on `kind`.

    With `isolate` they come with their documents.

    Raises UserError where DALI is asked for and not installed.
    """
    if kind == "dali":
        from hybridtron.data.loaders.dali import DaliLoader

        return DaliLoader(dataset, global_batch_size, micro_batch_size, dp_rank, dp_size, device, isolate)
    layout = (global_batch_size, micro_batch_size, dp_rank, dp_size, isolate)
    return lambda step: list(global_batch(dataset, step, *layout))
