"""Worker processes of a real program: results, failures, and death on either side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from hybridtron.errors import UserError
from hybridtron.processes import TaskFailed, WorkerDied, run_tasks

def work(task, report):
    kind, value = task
    if kind == "write":
        with open(value, "w") as file:
            file.write(str(os.getpid()))
        report(5)
        report(2)
    elif kind == "user":
        raise UserError(value)
    elif kind == "raise":
        raise ValueError(value)
    elif kind == "os":
        raise OSError(*value)
    elif kind == "exit":
        sys.exit(value)
    elif kind == "kill":
        os.kill(os.getpid(), value)

if __name__ == "__main__":
    num_workers, tasks = int(sys.argv[1]), eval(sys.argv[2])
    total = []
    try:
        run_tasks(work, tasks, num_workers, lambda task, value: total.append(value))
    except (WorkerDied, TaskFailed, UserError) as error:
        print(type(error).__name__, str(error).splitlines()[0], str(error).splitlines()[-1], sep="|")
    else:
        print("done", sum(total), os.getpid())
"""


def run(tmp_path, num_workers, tasks):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [sys.executable, str(program), str(num_workers), repr(tasks)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    options = {"capture_output": True, "text": True, "timeout": 300, "check": True}
    return subprocess.run(arguments, cwd=tmp_path, env=environment, **options).stdout


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_every_task_is_done_and_every_byte_counted(tmp_path, num_workers):
    output = run(tmp_path, num_workers, [("write", f"{i}") for i in range(5)]).split()
    assert output[:2] == ["done", "35"]
    pids = {(tmp_path / f"{i}").read_text() for i in range(5)}
    assert (output[2] in pids) == (num_workers == 1)
    assert len(pids) <= num_workers


def test_what_a_task_raises_arrives(tmp_path):
    work = ("write", "a")
    assert run(tmp_path, 2, [work, ("user", "bad line")]).split("|")[:2] == ["UserError", "bad line"]
    kind, first, last = run(tmp_path, 2, [work, ("raise", "oops")]).strip().split("|")
    assert (kind, first, last) == ("TaskFailed", "a worker process failed:", "ValueError: oops")
    kind, first, last = run(tmp_path, 2, [work, ("os", ["no source"])]).strip().split("|")
    assert (kind, first, last) == ("TaskFailed", "a worker process failed:", "OSError: no source")


def test_workers_import_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "pickle.py").write_text("raise ImportError('from the current folder')")
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(program), "2", repr([("write", "a"), ("write", "b")])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("done 14"), done.stderr


def test_a_worker_that_is_gone_is_an_error_and_no_hang(tmp_path):
    for task, how in ((("kill", 9), "signal SIGKILL"), (("exit", 3), "exit code 3")):
        kind, message, _ = run(tmp_path, 2, [task, ("write", "a"), ("write", "b")]).split("|")
        assert kind == "WorkerDied"
        assert message.endswith(f"died: {how}")
