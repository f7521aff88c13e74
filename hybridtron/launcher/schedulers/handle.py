"""What `submit` returns for each job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridtron.files import read_object

State = Literal["pending", "running", "finished", "stopped", "failed", "cancelled"]


@dataclass
class Handle(ABC):
    """A submitted job. `stopped`: it has saved and ended before its last step, as a signal asked it to."""

    name: str
    folder: Path
    job_id: str  # SLURM's number, such as 1234 or 1234_7; empty on this machine

    @property
    def result(self) -> dict[str, Any]:
        """Return how the job ended, as its supervisors recorded it; empty while it has not."""
        result = read_object(self.folder / "launch" / "result.json")
        return result if (result.get("job") or "") == self.job_id else {}

    @property
    def cause(self) -> str:
        """Return why a job failed, in words."""
        recorded = self.result.get("cause")
        return str(recorded) if recorded else f"it ended without a result; see {self.folder / 'logs'}"

    @property
    @abstractmethod
    def state(self) -> State: ...

    @abstractmethod
    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code: 0 finished or stopped, 1 failed, 2 bad input. Raises TimeoutError."""

    @abstractmethod
    def cancel(self) -> None:
        """Ask the job to save and end; one that has not started never does."""
