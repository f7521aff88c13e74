"""What a process of tests wrote to stderr before it was aborted, as malloc and C++ do with a message that says why."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key


@pytest.fixture(scope="session", autouse=True)
def captured_stderr(pytestconfig: pytest.Config) -> Iterator[None]:
    """Have a shell show, where this process ends without its leave, what pytest had captured of the test's stderr."""
    terminal = pytestconfig.stash.get(fault_handler_stderr_fd_key, None)
    if terminal is None or not stat.S_ISREG(os.fstat(2).st_mode) or not os.path.exists("/proc/self/fd/2"):
        yield  # nothing is captured, or not as Linux shows it
        return
    captured = os.open("/proc/self/fd/2", os.O_RDONLY)
    with subprocess.Popen(
        ["sh", "-c", f"read ended || cat /dev/fd/{captured}"],
        stdin=subprocess.PIPE,
        stdout=terminal,
        pass_fds=[captured],
    ) as shell:
        os.close(captured)
        yield
        shell.communicate(b"ended\n")
