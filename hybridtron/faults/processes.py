"""How the ranks of a session are run: forked from this process, or by the local launcher."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.faults import agent

POLL_SECONDS = 0.02
PEER_SECONDS = 3.0  # for forked ranks to end by themselves after another has failed
PACKAGE_ROOT = Path(__file__).parents[2]
PRELOADED = (
    "megatron.core.transformer.multi_token_prediction",  # which its schedules import in the first step
    "psutil",
    "torch.utils.tensorboard",
    "hybridtron.backends.megatron.backend",
    "hybridtron.distributed.engine",
    "hybridtron.faults.rank_callback",
    "hybridtron.mixers.attention.module",
    "hybridtron.mixers.mamba2.module",
    "hybridtron.mixers.swiglu.module",
)
# Loaded by Python as it starts, before it imports anything else.
SITE = """import os
if "{variable}" in os.environ:
    from hybridtron.faults.agent import install
    install()
"""


@dataclass(frozen=True)
class Ended:
    """How an attempt, or a launched job, ended. `code` is None where it had to be killed at the time limit."""

    code: int | None
    time: float


@contextmanager
def everything_imported() -> Iterator[None]:
    """Import what training needs, so that ranks forked in the block start within a second."""
    import_everything()
    gc.collect()
    gc.freeze()  # otherwise a collection in a rank looks at, and copies, all that was imported
    try:
        yield
    finally:
        gc.unfreeze()  # Triton would report frozen objects as leaks at the end


def import_everything() -> None:
    """Import what training needs."""
    import torch

    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():
        for module in PRELOADED:
            importlib.import_module(module)
    torch.set_num_threads(1)


def run_forked(config: Path, plan: Path, processes: int, attempt: int, limit: float) -> Ended:
    """Run one attempt in forked ranks, a process group of their own; return how it ended."""
    rendezvous, logs = plan.parent / f"rendezvous_{attempt}", plan.parent / "logs"
    logs.mkdir(exist_ok=True)
    group = 0
    running: dict[int, int] = {}
    for rank in range(processes):
        variables = {
            agent.VARIABLE: str(plan),
            agent.START_SECONDS: "1",
            agent.ATTEMPT: str(attempt),
            agent.RANK: str(rank),
            agent.SUPERVISOR: str(os.getpid()),
            "WORLD_SIZE": str(processes),
            "LOCAL_RANK": str(rank),
            "HYBRIDTRON_RENDEZVOUS": f"publish://{rendezvous}",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        process = os.fork()
        if not process:
            _be_rank(config, logs / f"rank_{rank:05d}.log", group, variables, limit)
        with suppress(OSError):
            os.setpgid(process, group or process)
        group = group or process
        running[process] = rank
    return _wait(running, group, limit)


def _be_rank(config: Path, log: Path, group: int, variables: dict[str, str], limit: float) -> None:
    """Train in this forked process; it ends here. Where that takes long, its log says what it was doing."""
    code = 1
    try:
        os.setpgid(0, group)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        print(f"=== attempt {variables[agent.ATTEMPT]}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(0.9 * limit)
        os.environ.update(variables)
        from hybridtron.api.training import train

        agent.install()
        train(str(config), resume=True)
        code = 0
    except UserError as error:
        print(f"hybridtron: error: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(running: dict[int, int], group: int, limit: float) -> Ended:
    """Wait for all ranks; end them where one has failed and they do not end, and at the limit."""
    deadline = time.monotonic() + limit
    code: int | None = 0
    while running:
        for process in list(running):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                del running[process]
                ended = os.waitstatus_to_exitcode(status)
                if ended and code == 0:
                    code = ended if ended > 0 else 128 - ended
                    deadline = min(deadline, time.monotonic() + PEER_SECONDS)
        if running and time.monotonic() > deadline:
            code = code or None
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return Ended(code, time.time())


def run_launched(config: Path, folder: Path, plan: Path, processes: int, limit: float) -> Ended:
    """Run a job by the local launcher to its end, with all its restarts. `limit`: seconds without any progress."""
    from hybridtron.api.launching import prepare
    from hybridtron.launcher.schedulers.local import LocalHandle
    from hybridtron.launcher.submit import submit

    site = plan.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE.format(variable=agent.VARIABLE))
    launch: dict[str, object] = {
        "cluster": "local",
        "processes_per_node": processes,
        "snapshot_code": False,
        "heartbeat_seconds": 20.0,
        "start_seconds": 300.0,
        "save_seconds": 60,
        "collective_seconds": 60.0,
        "max_restarts": 1000,
        "environment": {
            "PYTHONPATH": os.pathsep.join([str(site), str(PACKAGE_ROOT)]),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            agent.VARIABLE: str(plan),
            agent.START_SECONDS: "12",
        },
    }
    job, settings = prepare(config, launch=launch)
    (handle,) = submit([job], settings)
    assert isinstance(handle, LocalHandle)
    code = _wait_while_progress(handle.wait, lambda: _progress(folder, plan), limit)
    if code is None:
        for process in handle.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(code, time.time())


def _progress(folder: Path, plan: Path) -> tuple[int, ...]:
    """Return numbers that change when a run makes progress."""
    files = [folder / "metrics.jsonl", folder / "attempts.jsonl"]
    sizes = [file.stat().st_size for file in files if file.exists()]
    return (*sizes, len(list((plan.parent / "fired").iterdir())), len(list((folder / "launch").glob("attempt_*"))))


def _wait_while_progress(
    wait: Callable[[float], int], progress: Callable[[], tuple[int, ...]], limit: float
) -> int | None:
    """Wait for the end; return None where nothing has changed for `limit` seconds."""
    before, since = progress(), time.monotonic()
    while time.monotonic() - since < limit:
        try:
            return wait(0.5)
        except TimeoutError:
            now = progress()
            if now != before:
                before, since = now, time.monotonic()
    return None
