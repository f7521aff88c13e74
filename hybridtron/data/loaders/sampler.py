"""Which samples a data-parallel rank takes in a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.errors import UserError


@dataclass(frozen=True)
class BatchSampler:
    """The samples of one data-parallel rank.

    A step takes the samples of the dataset's order after those of the steps before, and each rank one contiguous block
    of them. So which samples a step takes does not depend on the layout.
    """

    sizes: BatchSizes
    micro_batch_size: int
    dp_rank: int
    dp_size: int

    def indices(self, step: int) -> np.ndarray:
        """Return the samples of a step (from 0), [micro-batches, micro_batch_size] int64.

        Raises UserError where the size of the step's batch is not a multiple of micro_batch_size * dp_size.
        """
        first, size = self.sizes.span(step)
        unit = self.micro_batch_size * self.dp_size
        if size < 1 or size % unit:
            raise UserError(
                f"train.global_batch_size = {size}: expected a multiple of micro_batch_size "
                f"{self.micro_batch_size} x data-parallel size {self.dp_size} "
                f"(nearest: {max(1, round(size / unit)) * unit})"
            )
        share = size // self.dp_size
        block = first + np.arange(self.dp_rank * share, (self.dp_rank + 1) * share, dtype=np.int64)
        return block.reshape(-1, self.micro_batch_size)
