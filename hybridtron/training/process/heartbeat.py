"""Signs of life of a training process for the supervisor that started it, as lines of JSON in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from hybridtron.training.callbacks.base import Callback, Row, TrainContext

PIPE = "HYBRIDTRON_HEARTBEAT"  # the variable with the pipe's file descriptor


def is_supervised() -> bool:
    """Return whether a supervisor watches this process, and ends it where that is needed."""
    return PIPE in os.environ


def send(**content: Any) -> None:
    """Send one message to the supervisor, if there is one. A full or closed pipe loses it."""
    if is_supervised():
        with contextlib.suppress(OSError):
            os.write(int(os.environ[PIPE]), json.dumps({**content, "time": time.time()}).encode() + b"\n")


class Heartbeat(Callback):
    """Sends the step and the phase of training. A phase is named after what has just been done."""

    def on_train_start(self, context: TrainContext) -> None:
        send(step=context.state.step, phase="start")

    def before_step(self, context: TrainContext) -> None:
        send(step=context.state.step, phase="train")

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        send(step=context.state.step, phase="step done")

    def on_evaluation(self, context: TrainContext) -> None:
        send(step=context.state.step, phase="evaluated")

    def on_save(self, context: TrainContext, checkpoint: Path) -> None:
        send(step=context.state.step, phase="saved")

    def on_train_end(self, context: TrainContext) -> None:
        send(step=context.state.step, phase="end", finished=True)

    def close(self) -> None:
        send(phase="closing")
