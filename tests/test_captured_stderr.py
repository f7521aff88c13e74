"""A test in which its process is aborted shows why."""

import sys

from tests.conftest import environment
from tests.warm import run

ABORTED = """
import os

def test_before():
    os.write(2, b"of another test")

def test_aborted():
    os.write(2, b"malloc(): the reason")
    os.abort()
"""


def test_what_was_captured_of_an_aborted_test_is_shown(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.captured_stderr import captured_stderr\n")
    (tmp_path / "test_aborted.py").write_text(ABORTED)
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path]
    done = run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode < 0
    assert "malloc(): the reason" in done.stdout + done.stderr
    assert "of another test" not in done.stdout + done.stderr
