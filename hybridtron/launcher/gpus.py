"""Look for GPUs of this machine without importing torch."""

from __future__ import annotations

from pathlib import Path

from hybridtron.errors import UserError

DEVICES = Path("/dev")
PATTERNS = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA, AMD, Windows Subsystem for Linux


def require(number: int) -> None:
    """Raise UserError where a job asks for GPUs and this machine has none."""
    if number and not any(next(DEVICES.glob(pattern), None) for pattern in PATTERNS):
        raise UserError(f"gpus_per_node = {number}: this machine has no GPU; expected 0 with cluster local")
