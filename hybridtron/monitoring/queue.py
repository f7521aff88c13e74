"""Jobs of this user in SLURM's queue."""

from __future__ import annotations

import logging
import shutil
import subprocess

logger = logging.getLogger(__name__)

SECONDS = 10  # after which squeue is not waited for


def queued_jobs() -> dict[str, str] | None:
    """Return the state of each job, such as PENDING, by its number and, in an array, also by ARRAY_INDEX.

    None where there is no SLURM, or it does not answer.
    """
    program = shutil.which("squeue")
    if program is None:
        return None
    command = [program, "--me", "--noheader", "--array", "--format=%i %A %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("squeue: %s", error)
        return None
    if done.returncode:
        logger.debug("squeue: %s", done.stderr.strip())
        return None
    rows = [line.split() for line in done.stdout.splitlines()]
    return {number: row[2] for row in rows if len(row) == 3 for number in row[:2]}
