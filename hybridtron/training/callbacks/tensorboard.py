"""The metrics of logged steps as TensorBoard events."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(FileWriter):
    """Write events into `folder`. A resumed run hides the events after the step it resumes from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def on_train_start(self, context: TrainContext) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        _silence_writer_thread()
        step = context.state.step
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Write the scalars of a logged step."""
        if logged and self.writer:
            for key, value in scalars(row):
                self.writer.add_scalar(key, value, row["step"])

    def close(self) -> None:
        """Close the event file."""
        if self.writer:
            self.writer.close()


@functools.cache
def _silence_writer_thread() -> None:
    """Let TensorBoard's writing thread print no traceback; the next call of its writer raises the exception."""
    from tensorboard.summary.writer import event_file_writer

    run = event_file_writer._AsyncWriterThread.run

    def run_silently(thread: Any) -> None:
        with contextlib.suppress(OSError):
            run(thread)

    event_file_writer._AsyncWriterThread.run = run_silently


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each finite number of a row; of expert loads, the busiest expert's over the mean."""
    for key, value in row.items():
        if key not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
            yield key, value
    for layer, shares in row.get("expert_load", {}).items():
        yield f"busiest_expert/{layer}", max(shares) * len(shares)
