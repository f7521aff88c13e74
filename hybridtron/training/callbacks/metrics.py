"""metrics.jsonl: one row for each logged step."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hybridtron.training.callbacks.base import Callback, Row, TrainContext
from hybridtron.training.run_folder.folder import replace_text


class MetricsFile(Callback):
    """Append a row per logged step. A resumed run first drops the rows after the step it resumes from."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_start(self, context: TrainContext) -> None:
        """Create the file, or drop the rows of steps that will be trained again."""
        kept = [row for row in read_metrics(self.file) if row["step"] <= context.state.step]
        replace_text(self.file, "".join(_line(row) for row in kept))

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Append the row of a logged step."""
        if logged:
            with self.file.open("a") as file:
                file.write(_line(row))


def read_metrics(file: Path) -> list[Row]:
    """Return the rows of a metrics file, without damaged lines (a killed run may leave its last line cut)."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Row) -> str:
    """Return the row as JSON, which has no NaN: a number that is not finite becomes null."""
    return json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}) + "\n"
