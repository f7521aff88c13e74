"""Where the time of the profiled steps went: the table, and its files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.files import replace_file, require_folder
from hybridtron.reporting.table import Column, Table
from hybridtron.training.profiling.clock import EVALUATION, OTHER
from hybridtron.training.profiling.parts import (
    BACKWARD,
    DATA,
    FORWARD,
    GRADIENT_REDUCTION,
    OPTIMIZER,
    PIPELINE,
    SAVE,
)
from hybridtron.training.profiling.steps import ProfiledSteps

if TYPE_CHECKING:
    from torch.profiler import profile

ORDER = (DATA, FORWARD, BACKWARD, GRADIENT_REDUCTION, PIPELINE, OPTIMIZER, EVALUATION, SAVE, OTHER)


@dataclass(frozen=True)
class Profile:
    """Seconds of each part in all profiled steps together, of one process."""

    steps: ProfiledSteps
    seconds: dict[str, float]
    device: str
    processes: int

    @property
    def seconds_per_step(self) -> float:
        return sum(self.seconds.values()) / self.steps.number

    def parts(self) -> list[dict[str, Any]]:
        """Return each part with its seconds a step and its share, in the order of ORDER."""
        total = sum(self.seconds.values())
        return [
            {"part": part, "seconds": spent / self.steps.number, "share": spent / total}
            for part, spent in sorted(self.seconds.items(), key=lambda item: ORDER.index(item[0].partition(":")[0]))
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the content of table.json."""
        return {
            "first_step": self.steps.first,
            "last_step": self.steps.last,
            "device": self.device,
            "processes": self.processes,
            "seconds_per_step": self.seconds_per_step,
            "parts": self.parts(),
        }

    def text(self) -> str:
        """Return a heading and the table, for a terminal."""
        parts = self.parts()
        table = Table(
            (
                Column("part", [each["part"] for each in parts]),
                Column("ms a step", [1000 * each["seconds"] for each in parts], "{:.2f}".format, right=True),
                Column("share", [each["share"] for each in parts], "{:.1%}".format, right=True),
            )
        )
        steps = self.steps
        named = f"step {steps.first}" if steps.first == steps.last else f"steps {steps.first} to {steps.last}"
        milliseconds = 1000 * self.seconds_per_step
        heading = f"{named}, profiled on {self.device}: {milliseconds:.2f} ms a step, with the time of the profiler"
        return f"{heading}\n{table.to_terminal().rstrip()}"


def write_profile(folder: Path, result: Profile, trace: profile) -> None:
    """Write table.json and trace.json.gz, which chrome://tracing and ui.perfetto.dev show, into a folder."""
    require_folder(folder)
    folder.mkdir(exist_ok=True)
    replace_file(folder / "table.json", json.dumps(result.as_json(), indent=2) + "\n")
    with tempfile.TemporaryDirectory() as temporary:  # torch writes wherever a link leads
        file = Path(temporary) / "trace.json.gz"
        trace.export_chrome_trace(str(file))
        replace_file(folder / file.name, file.read_bytes())
