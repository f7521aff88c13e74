"""Token accuracy of stacked models: over all scored positions (micro), and averaged over classes (macro).

Macro accuracy is mad-lab's: the mean over the classes of a batch, of those that are targets or predictions, of the
share of a class's targets that were met, 0 for a class that was only predicted; then the mean over batches of 128
examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridtron.mad.tasks import IGNORE

BATCH = 128  # examples


@dataclass(frozen=True)
class Accuracy:
    """One number for each model."""

    micro: Tensor  # [c]
    macro: Tensor  # [c]


def accuracy(predictions: Tensor, targets: Tensor, num_classes: int) -> Accuracy:
    """predictions [c, n, s] of c models for targets [n, s], or [c, n, s] where each has its own."""
    targets = targets.expand_as(predictions)
    scored = targets != IGNORE
    hits = (predictions == targets) & scored
    micro = hits.sum((1, 2)).double() / scored.sum((1, 2))
    batches = [
        _macro(some, wanted, num_classes)
        for some, wanted in zip(predictions.split(BATCH, 1), targets.split(BATCH, 1), strict=True)
    ]
    return Accuracy(micro, torch.stack(batches).mean(0))


def _macro(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """[c, n, s] each -> [c]."""
    models = len(predictions)
    offset = torch.arange(models, device=targets.device).view(-1, 1, 1) * num_classes
    scored = targets != IGNORE

    def counted(classes: Tensor, where: Tensor) -> Tensor:
        counts = torch.bincount((classes + offset)[where], minlength=models * num_classes)
        return counts.view(models, num_classes).double()

    wanted, given = counted(targets, scored), counted(predictions, scored)
    met = counted(targets, scored & (predictions == targets))
    present = (wanted + given > 0).sum(1)
    return (met / wanted.clamp(min=1)).sum(1) / present
