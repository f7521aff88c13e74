"""metrics.jsonl: one row for each logged step. `loss` is the mean since the row before, `step_loss` the step's own."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

from hybridtron.files import append_rows, is_number, open_rows, read_lines, read_plain, replace_file
from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext

NUMBERS = (
    "step", "tokens", "loss", "step_loss", "valid_loss", "valid_bits_per_byte", "lr", "grad_norm", "time", "skipped",
    "ema_valid_loss", "tokens_per_s", "flops_per_s", "mfu",
)  # fmt: skip


class MetricsFile(FileWriter):
    """Append a row per logged step. A resumed run first drops the rows after the step it resumes from."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stream: io.FileIO | None = None
        self.unwritten: Row | None = None  # of the last step, where that was not logged

    def on_train_start(self, context: TrainContext) -> None:
        """Create the file, or drop the rows of steps that will be trained again."""
        kept = [row for row in read_metrics(self.file) if row["step"] <= context.state.step]
        replace_file(self.file, "".join(json.dumps(row) + "\n" for row in kept))
        self.stream, _ = open_rows(self.file)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Append the row of a logged step. JSON has no NaN: a number that is not finite becomes null."""
        self.unwritten = None if logged else row
        if logged:
            self._append(row)

    def on_train_end(self, context: TrainContext) -> None:
        """Append the row of the last step of a run that a callback stopped, with its evaluation."""
        if self.unwritten:
            held_out = context.corpus.held_out if context.valid_loss is not None else None
            averaged = {} if context.ema_valid_loss is None else {"ema_valid_loss": context.ema_valid_loss}
            self._append(self.unwritten | (held_out.row(context.valid_losses) if held_out else {}) | averaged)

    def _append(self, row: Row) -> None:
        if self.stream:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            end = self.stream.seek(0, os.SEEK_END)
            try:
                append_rows(self.stream, [finite], sync=False)
            except OSError:  # a full disk took the beginning of the row, which the next one would follow
                self.stream.truncate(end)
                raise

    def close(self) -> None:
        """Close the file."""
        if self.stream:
            self.stream.close()


def read_metrics(file: Path) -> list[Row]:
    """Return the rows of a metrics file, without damaged lines (a killed run may leave its last line cut)."""
    values = [line.value for line in read_lines(read_plain(file))] if file.exists() else []
    return [row for row in values if isinstance(row, dict) and _is_sound(row)]


def _is_sound(row: Row) -> bool:
    """Return whether a row has a step, and numbers, or null for those that were not finite, where numbers belong."""
    return type(row.get("step")) is int and all(row.get(key) is None or is_number(row[key]) for key in NUMBERS)
