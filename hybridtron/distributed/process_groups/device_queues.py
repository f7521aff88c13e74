"""How many queues CUDA has for kernels: one, where messages must start before the products called after them."""

from __future__ import annotations

import ctypes
import os

from hybridtron.distributed.config import ParallelConfig

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
BLACKWELL = 10  # its major compute capability


def order_messages(parallel: ParallelConfig) -> None:
    """Have CUDA start messages of tensor parallelism in the order of their calls, before the products beside them.

    Call it before anything starts CUDA, which reads the variable once. Blackwell and newer GPUs are left as they are:
    megatron-core asks for one queue below compute capability 10 alone. A value that is set stays.
    """
    if parallel.tensor > 1 and QUEUES not in os.environ and (major_capability() or 0) < BLACKWELL:
        os.environ[QUEUES] = "1"


def major_capability() -> int | None:
    """Return the major compute capability of this machine's first GPU, or None where no driver tells it.

    NVML tells it without starting CUDA.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlInit_v2():
        return None
    failed = nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) or nvml.nvmlDeviceGetCudaComputeCapability(
        device, ctypes.byref(major), ctypes.byref(minor)
    )
    nvml.nvmlShutdown()
    return None if failed else major.value
