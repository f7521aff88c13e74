"""Average the weights of several checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hybridtron.convert.formats.checkpoint import CheckpointSource, StoredBox, boxes_of
from hybridtron.convert.new_run import Progress, new_run
from hybridtron.convert.workers import for_each
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.training.run_folder.folder import RunFolder, read_config, read_run
from hybridtron.training.run_folder.train_state import read_state


def average(
    checkpoints: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    ema: float | None = None,
    verify: Verify = "full",
    progress: Progress | None = None,
) -> None:
    """Write a run folder whose parameters are an average, computed in float32 and box by box.

    Args:
        checkpoints: folders of checkpoints, oldest first; a run folder stands for all that it holds.
        out: run folder to make; its checkpoint has the step of the last one, and no optimizer state.
        weights: one positive number for each checkpoint, which are divided by their sum; by default equal ones.
        ema: decay of an exponential moving average instead: each checkpoint counts for (1 - ema), what was averaged
            before for ema.
        verify: how much of the checkpoints is compared with their checksums first.
        progress: called while tensors are written.

    Raises:
        UserError: for fewer than two checkpoints, other numbers of weights, checkpoints of different models, or where
            `out` exists or the disk is too small.
        OSError: where the system cannot read or write.
    """
    given = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    folders = [each for path in given for each in _expanded(as_path(path, "checkpoints"))]
    out = as_path(out, "out")
    if len(folders) < 2:
        raise UserError(f"checkpoints: {len(folders)} given; expected at least 2")
    shares = shares_of(len(folders), weights, ema)
    sources = [CheckpointSource(folder, verify) for folder in folders]
    for source in sources[1:]:
        _require_same(sources[0], source)
    last = folders[-1]
    config, tensors = read_config(last.parent), sources[-1].tensors
    with new_run(out, config, read_state(last), tensors, run=last.parent, progress=progress) as sink:

        def write_average(place: StoredBox) -> None:
            name, box = place
            total = torch.zeros(box.sizes, dtype=torch.float32)
            for share, source in zip(shares, sources, strict=True):
                total.add_(source.read(name, *box).float(), alpha=share)
            sink.write(name, total.to(tensors[name].dtype), box.offsets)

        for_each(write_average, boxes_of(tensors))


def shares_of(count: int, weights: Sequence[float] | None, ema: float | None) -> list[float]:
    """Return what each checkpoint counts for; together 1. Raises UserError."""
    if weights is not None and ema is not None:
        raise UserError("weights: expected either weights or ema")
    if ema is not None:
        if not 0 < ema < 1:
            raise UserError(f"ema = {ema}: expected a decay between 0 and 1")
        return [ema ** (count - 1), *((1 - ema) * ema ** (count - 1 - i) for i in range(1, count))]
    if weights is None:
        return [1 / count] * count
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights = {list(weights)}: expected {count} positive numbers, one for each checkpoint")
    return [weight / sum(weights) for weight in weights]


def _expanded(path: Path) -> list[Path]:
    """Return the checkpoints of a run folder, or the checkpoint that the path is. Raises UserError."""
    _, checkpoint = read_run(path)
    return [checkpoint] if checkpoint == path else RunFolder(path).checkpoints()


def _require_same(first: CheckpointSource, other: CheckpointSource) -> None:
    """Raise UserError for the first tensor that two checkpoints do not have in one shape and number format."""
    for name in sorted(first.tensors.keys() | other.tensors.keys()):
        mine, theirs = first.tensors.get(name), other.tensors.get(name)
        if mine != theirs:
            raise UserError(
                f"{other.folder}: {name} is {theirs or 'absent'} there; expected {mine or 'none'}, as in {first.folder}"
            )
