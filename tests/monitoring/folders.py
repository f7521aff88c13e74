"""Run folders as training and the launcher leave them, without training."""

from __future__ import annotations

import json
from pathlib import Path

from hybridtron.training.run_folder.attempts import append_event


def write_run(folder: Path, steps: int = 100, rows: int = 40, started: float | None = 1000.0) -> Path:
    """A run of 2 s per step and 64 tokens; with an attempt that began at `started`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {folder.name}\ntrain:\n  steps: {steps}\n")
    began = 1000.0 if started is None else started
    metrics = [
        {"step": k, "tokens": 64 * k, "loss": 5 - 0.01 * k, "tokens_per_s": 32.0, "time": began + 2 * k}
        for k in range(1, rows + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (folder / ".lock").touch()
    if started is not None:
        append_event(folder, event="start", attempt=1, time=started, step=0, processes=1, nodes=["a"], job="17")
    return folder


def end_run(folder: Path, outcome: str, cause: str | None = None, step: int = 40) -> None:
    """Append the end of the first attempt, after 100 s."""
    seconds = {"start": 10.0, "step": 80.0, "save": 10.0}
    row = {"attempt": 1, "time": 1100.0, "step": step, "outcome": outcome, "cause": cause, "seconds": seconds}
    append_event(folder, event="end", **row)


def write_launch(folder: Path, name: str, content: object) -> None:
    """Write a file of the launcher."""
    (folder / "launch" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "launch" / name).write_text(json.dumps(content))
