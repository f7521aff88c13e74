"""When loss.png is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridtron.training.callbacks import plot


def test_many_saves_are_drawn_at_once_then_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "tokens": 8, "loss": 5.0}) + "\n")
    drawn: list[int] = []
    draw = plot.plot_loss

    def counted(rows: Any, file: Path, title: str) -> None:
        drawn.append(len(rows))
        draw(rows, file, title)

    monkeypatch.setattr(plot, "plot_loss", counted)
    callback = plot.LossPlot(metrics, tmp_path / "loss.png")
    context: Any = SimpleNamespace(config=SimpleNamespace(name="run"))
    for step in range(2, 12):
        callback.on_save(context, tmp_path)
        with metrics.open("a") as stream:
            stream.write(json.dumps({"step": step, "tokens": 8 * step, "loss": 4.0}) + "\n")
    assert drawn == [1]
    callback.close()
    assert drawn == [1, 11]
    callback.close()
    assert drawn == [1, 11]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
