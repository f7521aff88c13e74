"""What a supervisor reports of the rank that it watches."""

from __future__ import annotations

import os
import signal
import subprocess

from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Spec
from hybridtron.launcher.supervision import supervisor
from hybridtron.launcher.supervision import verdict as verdicts
from hybridtron.launcher.supervision.attempts import new_attempt
from hybridtron.launcher.supervision.child import Child
from hybridtron.launcher.supervision.supervisor import Supervisor
from hybridtron.launcher.supervision.task import Task


def test_a_stopped_rank_is_reported_as_such_where_another_has_failed_first(tmp_path, monkeypatch):
    """As the rank that waits for it, whose heartbeat may have been missed before its own."""
    monkeypatch.setattr(supervisor, "PEER_SECONDS", 0.0)
    attempt = new_attempt(tmp_path, "a", "17.0", 2)
    attempt.mark_failed()
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    listening, sending = os.pipe2(os.O_NONBLOCK)
    child = Child(process, tmp_path / "log", listening, 0, step=7)
    spec = Spec("tiny", str(tmp_path), "", (), True, (1,), 2, LaunchConfig().model_dump(mode="json"), "launch")
    report = Supervisor(spec, Task(1, 2, 1, "here", 1, "here", "127.0.0.1", None, "run"))._watch(attempt, child)
    os.close(sending)
    child.close()
    assert (report.weight, report.cause) == (verdicts.STOPPED, "is stopped by a signal (SIGSTOP) since step 7")
