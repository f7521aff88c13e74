"""A pool of worker processes that report progress and notice each other's death."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from hybridtron.errors import UserError

Task = TypeVar("Task")
Work = Callable[[Task, Callable[[Any], None]], None]  # work(task, report)

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read by libraries when a process starts


class WorkerDied(Exception):
    """A worker process ended in the middle of `task`. Its text is one clear line."""

    def __init__(self, task: Any, process: Any) -> None:
        self.task, self.exitcode = task, process.exitcode
        code = process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        super().__init__(f"a worker process (pid {process.pid}) died: {how}")


class TaskFailed(Exception):
    """A worker process raised an exception in `task`; the text holds its traceback."""

    def __init__(self, task: Any, text: str) -> None:
        self.task = task
        super().__init__(f"a worker process failed:\n{text}")


def run_tasks(
    work: Work[Task],
    tasks: Sequence[Task],
    num_processes: int,
    on_report: Callable[[Task, Any], None],
    single_threaded: bool = False,
) -> None:
    """Call work(task, report) for every task in order, in `num_processes` processes (one: in this process).

    What a task passes to `report` reaches on_report(task, value) in this process. Workers are spawned, not forked: they
    share no locks and no threads of libraries with this process. With `single_threaded`, libraries get one thread in
    each worker. Workers ignore SIGINT and end when this process does. Raises the UserError or OSError of a task as it
    is, TaskFailed for any other exception of a worker, WorkerDied for a worker that is gone.
    """
    if num_processes == 1 or not tasks:
        for task in tasks:
            work(task, lambda value, task=task: on_report(task, value))  # type: ignore[misc]
        return
    waiting = list(reversed(tasks))
    processes: dict[Connection, Any] = {}
    busy: dict[Connection, Task] = {}

    def assign(connection: Connection) -> None:
        busy[connection] = waiting.pop()
        with contextlib.suppress(ConnectionError):  # of a dead process: its next recv fails
            connection.send(busy[connection])

    try:
        threads = dict.fromkeys(THREADS, "1") if single_threaded else {}
        with _environment(threads | {"PYTHONSAFEPATH": "1"}):  # a worker imports nothing from the current folder
            for _ in range(min(num_processes, len(tasks))):
                connection, process = _start(work)
                processes[connection] = process
                assign(connection)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                kind, value = _receive(ready, processes[ready], busy[ready])
                if kind == "report":
                    on_report(busy[ready], value)
                elif waiting:
                    assign(ready)
                else:
                    del busy[ready]
    finally:
        for connection, process in processes.items():
            process.terminate()
            process.join()
            connection.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables until the end of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(work: Work[Any]) -> tuple[Connection, Any]:
    """Start a worker; return this process's end of the connection to it, and the worker."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    process.start()
    there.close()
    return here, process


def _receive(connection: Connection, process: Any, task: Any) -> tuple[str, Any]:
    """Return the next message of a worker; raise what went wrong in it."""
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise WorkerDied(task, process) from None
    if kind == "raise":
        raise value
    if kind == "error":
        raise TaskFailed(task, value)
    return kind, value


def _serve(connection: Connection, work: Work[Any]) -> None:
    """Work on tasks until the parent process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                work(task, lambda value: connection.send(("report", value)))
            except UserError as error:
                connection.send(("raise", UserError(str(error))))
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the system, which tells its cause
                    connection.send(("raise", OSError(error.errno, error.strerror, error.filename)))
                else:
                    connection.send(("error", traceback.format_exc()))
            else:
                connection.send(("done", None))


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
