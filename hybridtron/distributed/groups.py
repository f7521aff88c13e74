"""Process groups of a layout, and this process's place in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hybridtron.distributed import cpu_compat
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.environment import Environment
from hybridtron.distributed.memory import keep_freed_memory


@dataclass(frozen=True)
class Place:
    """This process among the others. Groups are torch process groups."""

    rank: int
    world_size: int
    device: torch.device
    tensor_rank: int
    tensor_size: int
    tensor_group: dist.ProcessGroup
    data_rank: int
    data_size: int
    data_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def process_groups(parallel: ParallelConfig, environment: Environment) -> Iterator[Place]:
    """Initialise torch.distributed and megatron-core's groups for the layout, and take them down at the end."""
    cpu_compat.install()
    from megatron.core import parallel_state

    _die_with_launcher()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(environment.local_rank % torch.cuda.device_count())
    else:
        keep_freed_memory()
    backend = "nccl" if cuda else "gloo"
    timeout = timedelta(minutes=10)
    if environment.init_method is None:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(
            backend,
            init_method=environment.init_method,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )
    try:
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=parallel.tensor)
        yield Place(
            rank=environment.rank,
            world_size=environment.world_size,
            device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            tensor_size=parallel.tensor,
            tensor_group=parallel_state.get_tensor_model_parallel_group(),
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=parallel_state.get_data_parallel_world_size(),
            data_group=parallel_state.get_data_parallel_group(),
        )
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _die_with_launcher() -> None:
    """On Linux, a rank that `--nproc` started ends when its launcher is killed, so that no rank is left behind."""
    launcher = os.environ.get("HYBRIDTRON_PARENT")
    if launcher is None or not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(launcher):
        os._exit(1)  # it was killed before the line above
