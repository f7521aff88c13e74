"""What gives training its micro-batches, by data.loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hybridtron.data.datasets.blended_dataset import TrainingTokens
from hybridtron.data.loaders.batches import MicroBatch, global_batch
from hybridtron.data.loaders.sampler import BatchSampler

if TYPE_CHECKING:
    import torch

Loader = Callable[[int], Sequence[MicroBatch]]  # the micro-batches of a step, counted from 0


def make_loader(
    kind: str, dataset: TrainingTokens, sampler: BatchSampler, device: torch.device, isolate: bool = False
) -> Loader:
    """Return the loader of one data-parallel rank; the micro-batches of a step do not depend on `kind`.

    With `isolate` they come with their documents. Raises UserError where DALI is asked for and not installed.
    """
    if kind == "dali":
        from hybridtron.data.loaders.dali import DaliLoader

        return DaliLoader(dataset, sampler, device, isolate)
    return lambda step: list(global_batch(dataset, step, sampler, isolate))
