"""Process groups of any size in one process: collectives send nothing and count what they would have sent."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]

from hybridtron.distributed.process_groups.groups import destroy_groups, require_no_process_groups

BACKEND = "fake_counting"  # torch has a backend of the name "fake"


class Traffic:
    """Bytes that one process sends, by (group, kind of collective), with ring algorithms: of n processes each sends
    2 (n - 1) / n of what it reduces, (n - 1) / n of what is gathered, scattered or exchanged in all."""

    def __init__(self) -> None:
        self.sent: Counter[tuple[str, str]] = Counter()
        self.names: dict[str, str] = {}

    def name(self, group: dist.ProcessGroup, name: str) -> None:
        """Give a group a name: groups of the same processes for different uses are counted apart."""
        self.names[_own_name(group)] = name

    def count(self, group: CountingGroup, kind: str, size_bytes: int, rounds: float = 1.0) -> None:
        """Add what one process sends in a collective over `size_bytes`, `rounds` times around the ring."""
        name = self.names.get(_own_name(group), "other")
        self.sent[name, kind] += round(rounds * size_bytes * (group.size() - 1) / group.size())


_traffic = Traffic()


def _own_name(group: dist.ProcessGroup) -> str:
    return dist.distributed_c10d._get_process_group_name(group)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _done(result: Any) -> Any:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    return _create_work_from_future(future)


class CountingGroup(dist.ProcessGroup):
    """A process group that sends nothing: every collective is done at once and leaves its output as it was."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._size = size

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:
        return BACKEND

    def allreduce(self, tensors: list[Tensor], *_: Any) -> Any:  # type: ignore[override]
        _traffic.count(self, "all_reduce", _bytes(*tensors), 2.0)
        return _done(tensors)

    def broadcast(self, tensors: list[Tensor], *_: Any) -> Any:  # type: ignore[override]
        return _done(tensors)

    def barrier(self, *_: Any) -> Any:
        return _done(None)

    def all_gather_single(self, output: Tensor, shard: Tensor, *_: Any) -> Any:
        _traffic.count(self, "all_gather", _bytes(output))
        return _done(output)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, *_: Any) -> Any:
        _traffic.count(self, "reduce_scatter", _bytes(whole))
        return _done(output)

    def all_to_all_single(self, output: Tensor, shards: Tensor, *_: Any) -> Any:
        _traffic.count(self, "all_to_all", _bytes(shards))
        return _done(output)

    # Names that torch gave these before 2.13.
    _allgather_base: Any = all_gather_single
    _reduce_scatter_base: Any = reduce_scatter_single
    alltoall_base: Any = all_to_all_single


@contextlib.contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[Traffic]:
    """Initialise torch.distributed as process `rank` of a world without other processes, and yield its traffic.

    Raises UserError inside other process groups.
    """
    global _traffic
    require_no_process_groups()
    if BACKEND not in dist.Backend.backend_list:
        devices = ["cpu", "cuda", "meta"]
        dist.Backend.register_backend(
            BACKEND, lambda store, rank, size, timeout: CountingGroup(rank, size), devices=devices
        )
    _traffic = Traffic()
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=rank, world_size=world_size)
    try:
        yield _traffic
    finally:
        destroy_groups()
