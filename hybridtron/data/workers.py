"""Tasks spread over processes that notice each other's death."""

import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from hybridtron.errors import UserError

Task = TypeVar("Task")
Work = Callable[[Task, Callable[[int], None]], None]

REPORT_INTERVAL = 0.1  # seconds between two reports of progress


class WorkerDied(Exception):
    """A worker process ended in the middle of its work. Its text is one clear line."""


def run_tasks(work: Work[Task], tasks: Sequence[Task], num_workers: int, on_bytes: Callable[[int], None]) -> None:
    """Calls work(task, on_bytes) for every task, in `num_workers` processes (one: in this process).

    Started afresh, not forked: workers share no locks and no libraries' threads with this process. Raises the UserError
    of a task as it is, RuntimeError for any other exception with its traceback, WorkerDied for a worker that is gone.
    When this process dies, the workers end themselves.
    """
    if num_workers == 1 or len(tasks) <= 1:
        for task in tasks:
            work(task, on_bytes)
        return
    context = get_context("spawn")
    waiting = list(reversed(tasks))
    processes: dict[Connection, Any] = {}
    busy: set[Connection] = set()
    try:
        for _ in range(min(num_workers, len(tasks))):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, work), daemon=True)
            process.start()
            there.close()
            processes[here] = process
            _send(here, waiting.pop(), processes)
            busy.add(here)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                kind, value = _receive(connection, processes)
                if kind == "bytes":
                    on_bytes(value)
                elif kind == "user_error":
                    raise UserError(value)
                elif kind == "error":
                    raise RuntimeError(f"a worker process failed:\n{value}")
                elif waiting:
                    _send(connection, waiting.pop(), processes)
                else:
                    busy.remove(connection)
    finally:
        for connection, process in processes.items():
            process.terminate()
            process.join()
            connection.close()


def _send(connection: Connection, task: Any, processes: dict[Connection, Any]) -> None:
    try:
        connection.send(task)
    except (BrokenPipeError, ConnectionResetError):
        raise _died(processes[connection]) from None


def _receive(connection: Connection, processes: dict[Connection, Any]) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        raise _died(processes[connection]) from None


def _died(process: Any) -> WorkerDied:
    process.join()
    code = process.exitcode
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return WorkerDied(f"a worker process (pid {process.pid}) died: {how}")


def _serve(connection: Connection, work: Work[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    try:
        while True:
            task = connection.recv()
            progress = _Progress(connection)
            try:
                work(task, progress.add)
            except UserError as error:
                connection.send(("user_error", str(error)))
            except Exception:
                connection.send(("error", traceback.format_exc()))
            else:
                progress.send()
                connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


class _Progress:
    """Gathers small steps, so that a report goes out every REPORT_INTERVAL and not for every line."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._gathered = 0
        self._sent_at = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self._gathered += num_bytes
        if time.monotonic() - self._sent_at >= REPORT_INTERVAL:
            self.send()

    def send(self) -> None:
        self._connection.send(("bytes", self._gathered))
        self._gathered = 0
        self._sent_at = time.monotonic()
