"""Meet the other ranks of a job by a file on a file system that all nodes share."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.errors import UserError
from hybridtron.files import read_plain, replace_file

PUBLISH = "publish://"
POLL_SECONDS = 0.05


def published_store(environment: Environment, timeout: timedelta) -> dist.Store:
    """Return the store of the job: rank 0 listens on a free port and writes where into the file, others read it.

    Raises TimeoutError where rank 0 has not written it in time.
    """
    assert environment.init_method is not None
    file = Path(environment.init_method.removeprefix(PUBLISH))
    if environment.rank == 0:
        store = dist.TCPStore(environment.address, 0, None, True, timeout, wait_for_workers=False)
        replace_file(file, json.dumps({"address": environment.address, "port": store.port}) + "\n")
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            found = json.loads(read_plain(file))
            break
        except (OSError, ValueError, UserError):
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 has not written {file} in {timeout.total_seconds():g} s") from None
            time.sleep(POLL_SECONDS)
    return dist.TCPStore(str(found["address"]), int(found["port"]), None, False, timeout, wait_for_workers=False)
