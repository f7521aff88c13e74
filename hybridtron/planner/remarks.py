"""What a dry run counts as if it were otherwise."""

from __future__ import annotations

from hybridtron.planner.dry_run import Device
from hybridtron.training.config import RunConfig


def remarks_on(config: RunConfig, device: Device) -> list[str]:
    """Return a line for each key whose memory a dry run does not tell from that of another value."""
    train = config.train
    lines = {
        "precision.format fp8 is counted as bf16": config.precision.format == "fp8",
        "train.compile is counted as false: compiled layers may keep other activations": train.compile,
        "train.cuda_graphs is counted as false: evaluations, and steps that are not replayed, take memory beside the "
        "recording's": train.cuda_graphs and device == "gpu",
    }
    return [line for line, applies in lines.items() if applies]
