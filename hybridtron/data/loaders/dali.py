"""NVIDIA DALI as the reader of training batches (data.loader: dali)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridtron.data.datasets.blended_dataset import TrainingTokens
from hybridtron.data.loaders.batches import MicroBatch, micro_batch, step_documents
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.errors import UserError

if TYPE_CHECKING:
    import torch

    from hybridtron.documents import Documents


def require_dali() -> None:
    """Raise UserError where DALI is not installed."""
    try:
        found = find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no package at all of the name nvidia
        found = None
    if found is None:
        raise UserError(
            "data.loader = dali: NVIDIA DALI is not installed; expected it (pip install 'hybridtron[dali]'), or mmap"
        )


class DaliLoader:
    """The micro-batches of one data-parallel rank, read by a DALI pipeline and copied to `device`.

    The pipeline asks the dataset for the samples that the memory-mapped loader reads, in the same order: it can begin
    at any step. Raises UserError where DALI is not installed, or where the batch cannot be divided.
    """

    def __init__(
        self, dataset: TrainingTokens, sampler: BatchSampler, device: torch.device, isolate: bool = False
    ) -> None:
        require_dali()
        self.dataset, self.sampler, self.device, self.isolate = dataset, sampler, device, isolate
        sampler.indices(0)  # refuses a batch that cannot be divided
        self._next_step = -1
        self._batches: Iterator[Any] = iter(())

    def __call__(self, step: int) -> Sequence[MicroBatch]:
        """Return the micro-batches of training step `step` (from 0)."""
        if step != self._next_step:  # the first step of a run, also of a resumed one
            self._batches = self._start(step)
        self._next_step = step + 1
        documents: Sequence[Documents | None] = [None] * len(self.sampler.indices(step))
        if self.isolate:
            documents = step_documents(self.dataset, step, self.sampler)
        return [micro_batch(next(self._batches)[0]["windows"], each) for each in documents]

    def _windows(self, step: int) -> Iterator[np.ndarray]:
        """Read the windows [b, s + 1] of all micro-batches from a step on, without end."""
        while True:
            for indices in self.sampler.indices(step):
                yield self.dataset.samples(indices)
            step += 1

    def _start(self, step: int) -> Iterator[Any]:
        """Build a pipeline whose first output is the first micro-batch of a step."""
        import torch
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        on_gpu = self.device.type == "cuda"
        gpu = (torch.cuda.current_device() if self.device.index is None else self.device.index) if on_gpu else None
        pipeline = Pipeline(batch_size=self.sampler.micro_batch_size, num_threads=1, device_id=gpu)
        with pipeline:
            windows = fn.external_source(source=self._windows(step), batch=True, dtype=types.DALIDataType.INT64, ndim=1)
            pipeline.set_outputs(windows.gpu() if on_gpu else windows)
        return iter(DALIGenericIterator(pipeline, ["windows"], auto_reset=False, prepare_first_batch=False))
