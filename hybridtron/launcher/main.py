"""The entry point of each task of a job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.launcher.job import read_spec
from hybridtron.launcher.private_files import private_files
from hybridtron.launcher.supervision.supervisor import supervise
from hybridtron.launcher.supervision.task import this_task


def main() -> int:
    """Supervise one process of a job: `JOB.json`, or a file with the paths of those of an array."""
    file = Path(sys.argv[1])
    try:
        if file.suffix == ".list":
            file = Path(file.read_text().split("\0")[int(os.environ["SLURM_ARRAY_TASK_ID"])])
        with private_files():
            return supervise(read_spec(file), this_task())
    except UserError as error:
        print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2
