"""The device of this process."""

from __future__ import annotations

import torch

from hybridtron.distributed.process_groups.environment import read_environment


def take_device() -> str:
    """Make this process's GPU, by the launcher's count on its node, the current one; return `cuda`, or `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(read_environment().local_rank % torch.cuda.device_count())
    return "cuda"
