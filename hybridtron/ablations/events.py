"""What happens to runs while a study trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """A step of a run, or its end; `cause` says why a run failed. A stopped run has saved, and can go on."""

    kind: Literal["step", "finished", "failed", "stopped"]
    step: int = 0
    loss: float | None = None
    cause: str = ""


OnEvent = Callable[[str, Event], None]  # with the run's name
