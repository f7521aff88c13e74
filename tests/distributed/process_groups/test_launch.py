"""Several processes of one command on this machine."""

import os
import signal
import subprocess
import sys

import pytest

from hybridtron.distributed.process_groups.launch import _search_path, caught_signals, launch, python_command
from tests.conftest import ROOT, environment

SAY_RANK = "import os, pathlib; pathlib.Path(os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"


def test_every_rank_runs_and_knows_the_world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch([sys.executable, "-c", SAY_RANK], 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_one_failure_is_the_outcome():
    assert launch([sys.executable, "-c", "import os, sys; sys.exit(5 * int(os.environ['RANK']))"], 2) == 5


def test_a_rank_that_waits_for_a_failed_one_is_ended(monkeypatch):
    monkeypatch.setattr("hybridtron.distributed.process_groups.launch.GRACE_SECONDS", 0.2)
    script = "import os, sys, signal; sys.exit(3) if os.environ['RANK'] == '1' else signal.pause()"
    assert launch([sys.executable, "-c", script], 2) == 3


def test_a_killed_rank_is_named_and_the_others_end_soon(monkeypatch, capfd):
    monkeypatch.setattr("hybridtron.distributed.process_groups.launch.GRACE_AFTER_KILL_SECONDS", 0.2)
    script = "import os, signal; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else signal.pause()"
    assert launch([sys.executable, "-c", script], 2) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "hybridtron: rank 1 was killed (signal 9)\n"


def test_ranks_import_nothing_from_the_current_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("yaml", "argparse", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('from the current folder')")
    for path in ("", f"{os.pathsep}/nowhere{os.pathsep}", str(ROOT)):
        monkeypatch.setenv("PYTHONPATH", path)
        assert launch(python_command("describe", str(ROOT / "configs/runs/quickstart.yaml"), "--json"), 1) == 0
    assert "from the current folder" not in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["/usr/lib/python3/dist-packages", "/venv/lib/python3.11/site-packages"])
def test_packages_of_an_environment_stay_in_their_place_on_the_search_path(folder, monkeypatch):
    """They would come before those of a virtual environment that sees them."""
    monkeypatch.setattr(
        "hybridtron.distributed.process_groups.launch.__file__",
        f"{folder}/hybridtron/distributed/process_groups/launch.py",
    )
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert _search_path() == "/mine"
    monkeypatch.setattr(
        "hybridtron.distributed.process_groups.launch.__file__",
        "/checkout/hybridtron/distributed/process_groups/launch.py",
    )
    assert _search_path() == f"/mine{os.pathsep}/checkout"


def test_a_hang_up_ends_a_run_unless_it_is_to_be_ignored():
    assert signal.SIGHUP in caught_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signal.SIGHUP not in caught_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


RELAY = """
import pathlib, signal, sys
from hybridtron.distributed.process_groups.launch import launch
sys.exit(launch([sys.executable, "-c", pathlib.Path("rank.py").read_text()], 2))
"""
RANK = """
import os, pathlib, signal, sys
def stop(number, frame):
    pathlib.Path("got" + os.environ["RANK"]).write_text(str(number)); sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path("ready" + os.environ["RANK"]).write_text(str(os.getpid()))
while True: signal.pause()
"""


@pytest.fixture
def relay(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    process = subprocess.Popen([sys.executable, "-c", RELAY], cwd=tmp_path, env=environment())
    ready = [tmp_path / "ready0", tmp_path / "ready1"]
    while not all(path.exists() and path.read_text() for path in ready):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    yield process
    process.kill()
    process.wait()
    for path in ready:  # where the launcher was killed before it could end them
        try:
            os.kill(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_signal_reaches_every_rank(relay, tmp_path):
    relay.send_signal(signal.SIGUSR1)
    assert relay.wait(timeout=240) == 0
    assert (tmp_path / "got0").read_text() == (tmp_path / "got1").read_text() == str(int(signal.SIGUSR1))
