"""Several mixers side by side on a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.parallel.config import ParallelMixersConfig
from hybridtron.ops.elementwise.precision import accumulation_dtype


class ParallelMixers(Mixer):
    """The sum, the mean or a weighted sum of the outputs of several mixers."""

    def __init__(self, config: ParallelMixersConfig, backend: Backend) -> None:
        super().__init__(config, backend)
        self.branches = nn.ModuleList(branch.build(backend) for branch in config.branches)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        return self._merge(x, [branch(x, documents) for branch in self._branches()])

    def initial_state(self, batch: int) -> State:
        return tuple(branch.initial_state(batch) for branch in self._branches())

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        read = [branch.prefill(x, before) for branch, before in zip(self._branches(), state, strict=True)]
        outputs, states = zip(*read, strict=True)
        return self._merge(x, outputs), states

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        stepped = [branch.step(x, before) for branch, before in zip(self._branches(), state, strict=True)]
        outputs, states = zip(*stepped, strict=True)
        return self._merge(x, outputs), states

    def _branches(self) -> list[Mixer]:
        return [branch for branch in self.branches if isinstance(branch, Mixer)]

    def _merge(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Merge outputs [..., h] made from x [..., h]."""
        if self.config.merge == "gate":
            logits = F.linear(x, self.gate)  # [..., branches]
            weights = logits.to(accumulation_dtype(x)).softmax(-1).to(x.dtype).split(1, -1)
            outputs = [weight * output for weight, output in zip(weights, outputs, strict=True)]
        merged = outputs[0]
        for output in outputs[1:]:
            merged = merged + output
        return merged / len(outputs) if self.config.merge == "mean" else merged
