"""Which process of a run writes to the terminal."""

from __future__ import annotations

import os


def is_reporting_process() -> bool:
    """Return whether this process prints errors: only rank 0 of the processes that --nproc started, else each."""
    return "HYBRIDTRON_PARENT" not in os.environ or os.environ.get("RANK") == "0"
