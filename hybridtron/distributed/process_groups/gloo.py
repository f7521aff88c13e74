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
_initialize: Any = _Gloo.__init__


def _with_one_thread(self: Any, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
    """Initialize a process group that sends its messages in their order, by one thread; meet the other processes on the
    interfaces that GLOO_SOCKET_IFNAME names, or the host's own."""
    options = _Gloo._Options()
    options._threads = 1
    options._timeout = timeout
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME", "")
    named = [_Gloo.create_device(interface=each) for each in interfaces.split(",") if each]
    options._devices = named or [_Gloo.create_default_device()]
    _initialize(self, store, rank, size, options)


@contextlib.contextmanager
def one_thread_for_each_group() -> Iterator[None]:
    """Give the groups of gloo that are made inside the block one thread each."""
    if _Gloo is object:
        yield
        return
    with patch.object(_Gloo, "__init__", _with_one_thread):  # not the class, by which torch knows groups of gloo
        yield
