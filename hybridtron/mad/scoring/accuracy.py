"""Token accuracy of stacked models: over all scored positions (micro), and averaged over classes (macro).

Macro accuracy is mad-lab's: the mean over the classes of a batch, of those that are targets or predictions, of the
share of a class's targets that were met, 0 for a class that was only predicted; then the mean over batches of 128
examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridtron.mad.tasks.protocol import IGNORE

BATCH = 128  # examples


@dataclass(frozen=True)
class Accuracy:
    """One number for each model."""

    micro: Tensor  # [c]
    macro: Tensor  # [c]


def accuracy(predictions: Tensor, targets: Tensor, num_classes: int) -> Accuracy:
    """Compute accuracies of predictions [c, n, s] of c models for targets [n, s], or [c, n, s] where they differ."""
    targets = targets.expand_as(predictions)
    scored = targets != IGNORE
    hits = (predictions == targets) & scored
    micro = hits.sum((1, 2)).double() / scored.sum((1, 2))
    return Accuracy(micro, _macro(predictions, targets.where(scored, num_classes), hits, num_classes))


def _macro(predictions: Tensor, targets: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Compute macro accuracy, [c, n, s] each -> [c]; unscored targets have an extra class that does not count."""
    models, examples, _ = predictions.shape
    batches = -(-examples // BATCH)
    batch = torch.arange(models, device=targets.device).view(-1, 1, 1) * batches
    batch = (batch + torch.arange(examples, device=targets.device).view(1, -1, 1) // BATCH) * (num_classes + 1)

    def counted(classes: Tensor) -> Tensor:
        counts = torch.bincount((classes + batch).flatten(), minlength=models * batches * (num_classes + 1))
        return counts.view(models, batches, -1)[..., :num_classes].double()

    wanted = counted(targets)
    given = counted(predictions.where(targets < num_classes, num_classes))
    met = counted(targets.where(hits, num_classes))
    present = (wanted + given > 0).sum(-1)
    return ((met / wanted.clamp(min=1)).sum(-1) / present).mean(-1)
