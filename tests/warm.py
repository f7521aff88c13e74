"""Processes of Python that start within milliseconds: forks of one that has imported torch and megatron-core.

`Popen` and `run` are those of subprocess. A command `python -m MODULE` or `python -c CODE` becomes a fork, and so do
the ranks that such a process starts; each has arguments, environment, folder, streams and signals as after an exec, and
the process that asked for it as its parent. Where that cannot be so, as in a process with several threads, it is
started as subprocess does. Tests of what a start imports use subprocess.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parent.parent
PRELOADED = (
    "rich._emoji_codes",
    "rich.progress",
    "tensorboard.plugins.hparams.metadata",
    "pydantic.dataclasses",
    "torch.utils.serialization.config",
    "hybridtron.accounting.picture",
    "hybridtron.api.study",
    "hybridtron.backends.torch",
    "hybridtron.cli.main",
    "hybridtron.distributed.checkpoint.reading",
    "hybridtron.mixers.mlp.module",
    "hybridtron.monitoring.show",
    "hybridtron.planner.show",
    "hybridtron.training.callbacks.progress",
    "hybridtron.training.evaluate",
    "hybridtron.training.run",
    "torch._dynamo",  # last: its import changes what torch does; recomputed layers need it
)
HEADER = struct.Struct("q")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
ColdPopen = subprocess.Popen


def _program(command: Any, env: Any) -> list[str] | None:
    """Return -m or -c, with what follows it, of a command that can be a fork; None for any other."""
    if not isinstance(command, list | tuple) or str(command[0]) != sys.executable:
        return None
    words = [str(word) for word in command[1:]]
    while words[:1] in (["-P"], ["-B"], ["-u"]):
        del words[0]
    if words[:1] not in (["-m"], ["-c"]) or (env or os.environ).get("OMP_NUM_THREADS") != "1":
        return None
    if "sys.path.insert(0, sys.argv.pop(1))" in words[1] and words[2] != str(ROOT):  # a copy of the package
        return None
    return words


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, whose process is a fork where the command allows it."""

    def _execute_child(self, args, *more):  # type: ignore[no-untyped-def]
        names = inspect.signature(super()._execute_child).parameters  # type: ignore[misc]
        given = dict(zip(list(names)[1:], more, strict=True))
        program = _program(args, given["env"])
        if _Server.is_this_process:
            can_fork = threading.active_count() == 1  # a fork has none of the others, which may hold locks
        else:
            can_fork = not given["preexec_fn"] and not given["pass_fds"]
        if program is None or not can_fork:
            super()._execute_child(args, *more)  # type: ignore[misc]
            return
        streams = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        request = {
            "program": program,
            "cwd": os.fspath(given["cwd"] or os.getcwd()),
            "env": {str(name): str(value) for name, value in (given["env"] or os.environ).items()},
            "session": bool(given["start_new_session"]),
        }
        streams = [stream if stream >= 0 else number for number, stream in enumerate(streams)]
        if _Server.is_this_process:
            self.pid = _fork(request, streams, given["pass_fds"], given["preexec_fn"])
        else:
            self.pid = _fork_of_server(request, streams)
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in ends))  # type: ignore[attr-defined]


def run(
    command: Any, *, capture_output: bool = False, check: bool = False, timeout: float | None = None, **more: Any
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run, with a `Popen` of this module."""
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **more) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def launch(command: Sequence[str], processes: int, output: TextIO | None = None) -> int:
    """hybridtron.distributed.process_groups.launch, in a process whose ranks are forks; `output` is its streams'."""
    code = "import sys; from hybridtron.distributed.process_groups.launch import launch as go; "
    code += "sys.exit(go(sys.argv[2:], int(sys.argv[1])))"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(processes), *command]
    return run(command, env=env, stdout=output, stderr=output).returncode


class _Server:
    is_this_process = False  # or a fork of it


@cache
def _server() -> socket.socket:
    """Start the process that is forked; it ends with this one."""
    here, there = socket.socketpair()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    ColdPopen(
        [sys.executable, "-P", "-m", "tests.warm", str(there.fileno())], env=env, cwd="/", pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    there.close()
    return here


def _fork_of_server(request: dict[str, Any], streams: list[int]) -> int:
    """Have the server fork a process, which becomes a child of this one; return its id."""
    server, content = _server(), json.dumps(request).encode()
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1)  # what the server's own child leaves behind comes to this process
    try:
        socket.send_fds(server, [HEADER.pack(len(content))], streams)
        server.sendall(content)
        (pid,) = HEADER.unpack(_receive(server, HEADER.size))
        _receive(server, 1)
    finally:
        prctl(SUBREAPER, 0)
    return int(pid)


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError("the process of tests.warm has ended")
        content += part
    return content


def _serve(connection: socket.socket) -> None:
    """Fork a process for each request, until the other end is closed."""
    from hybridtron.faults.processes import import_everything

    with warnings.catch_warnings(action="ignore"):
        import_everything()
        for module in PRELOADED:
            importlib.import_module(module)
    _draw()
    gc.collect()
    gc.freeze()
    if hasattr(os, "SCHED_BATCH"):
        # Else whom a message wakes takes the core of its sender, who holds a lock that gloo's threads spin on.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _Server.is_this_process = True
    subprocess.Popen = Popen  # type: ignore[misc]
    while True:
        head, streams, _, _ = socket.recv_fds(connection, HEADER.size, 3)
        if not head:
            return
        request = json.loads(_receive(connection, *HEADER.unpack(head)))
        child = os.fork()
        if not child:
            connection.sendall(HEADER.pack(_fork(request, streams)))
            os._exit(0)
        os.waitpid(child, 0)
        connection.sendall(b".")
        for stream in streams:
            os.close(stream)


def _draw() -> None:
    """Draw a picture, after which matplotlib knows its fonts."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().set(xlabel="1", title="1")
    figure.savefig(io.BytesIO(), format="png")


def _fork(
    request: dict[str, Any],
    streams: list[int],
    kept: Sequence[int] = (),
    before_start: Callable[[], object] | None = None,
) -> int:
    """Fork this process; return the id of the fork, which becomes what is requested."""
    every = signal.valid_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, every)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 1
    try:
        _become(request, streams, kept)
        if before_start:
            before_start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _run(*request["program"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)
    raise AssertionError


def _run(option: str, program: str, *arguments: str) -> None:
    """Run a module or code as Python's main program."""
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


def _become(request: dict[str, Any], streams: list[int], kept: Sequence[int]) -> None:
    """Take over what an exec would: streams, signals, folder, environment and arguments."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, copy in enumerate([os.dup(stream) for stream in streams]):
        os.dup2(copy, number)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


def _end(code: int) -> None:
    """End as an interpreter does: threads, functions of atexit, streams."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.modules["tests.warm"] = sys.modules["__main__"]
    with socket.socket(fileno=int(sys.argv[1])) as end:
        _serve(end)
