"""Process groups of gloo with one thread each.

Torch gives a group two threads. After a message each of them puts the kind of it into one string of the group, without
a lock (`ProcessGroupGloo::runLoop`, torch 2.13). A name of more than 15 characters, as that of coalesced gathers, lies
on the heap, where both threads free the one before: a process with several such gathers under way ends in `malloc`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed import distributed_c10d

_Gloo: Any = distributed_c10d.ProcessGroupGloo if dist.is_gloo_available() else object


class _OneThread(_Gloo):
    """A process group of gloo that sends its messages in their order, by one thread."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        """Meet the other processes on the interfaces that GLOO_SOCKET_IFNAME names, or the host's own."""
        options = _Gloo._Options()
        options._threads = 1
        options._timeout = timeout
        interfaces = os.environ.get("GLOO_SOCKET_IFNAME", "")
        named = [_Gloo.create_device(interface=each) for each in interfaces.split(",") if each]
        options._devices = named or [_Gloo.create_default_device()]
        super().__init__(store, rank, size, options)


@contextlib.contextmanager
def one_thread_for_each_group() -> Iterator[None]:
    """Give the groups of gloo that are made inside the block one thread each."""
    if _Gloo is object:
        yield
        return
    with patch.object(distributed_c10d, "ProcessGroupGloo", _OneThread):
        yield
