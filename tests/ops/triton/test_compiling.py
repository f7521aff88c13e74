import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_triton_translates_the_kernels_for_an_h100():
    """In a process of its own: in this one Triton is imported as an interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.triton.compiling"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "18 kernels\n"
