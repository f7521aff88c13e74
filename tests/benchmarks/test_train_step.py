"""benchmarks/train_step.py as its users start it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_without_transformers_it_says_how_to_get_them(tmp_path):
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('No module named transformers')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(ROOT / "benchmarks" / "train_step.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hybridtron: error: transformers is not installed; make .venv/dev")
    assert done.stderr.count("\n") == 1
