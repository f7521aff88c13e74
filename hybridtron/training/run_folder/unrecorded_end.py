"""What is known of a job of SLURM that ended without a result. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from hybridtron.files import read_object
from hybridtron.training.run_folder.submitted import read_submitted


def end_without_result(folder: Path) -> str:
    """Return in words how far the job of a run folder came, and where its output is.

    It began where the launcher started its ranks in an attempt of this launch. The output of a job that was submitted
    with others is in the folder of all, which launch/submitted.json names.
    """
    launch = folder / "launch"
    job = read_object(launch / "job.json")
    output = read_submitted(folder).get("output") or launch / "slurm"
    launches = [read_object(file).get("launch") for file in launch.glob("attempt_*/start.json")]
    if launches and job.get("launch_id") in (None, *launches):
        return f"its job ended without a result; see {folder / 'logs'} and {output}"
    return f"its job ended before {'its work' if job.get('is_training') is False else 'training'} began; see {output}"
