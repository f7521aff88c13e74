"""benchmarks/convert.py with a model of a billion parameters: memory does not grow with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_a_billion_parameters_go_to_hugging_face_and_back_in_little_memory(tmp_path):
    """The steps compare every bit; 1 GiB is about half of the weights, with 0.4 GiB of libraries in it."""
    command = [sys.executable, ROOT / "benchmarks" / "convert.py", tmp_path / "scratch", "--size", "1b"]
    done = subprocess.run([*command, "--json", tmp_path / "found.json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["gb"] > 1.8
    for step in ("to_hf", "from_hf"):
        assert found[step]["peak_gib"] < 1
        assert f"{step}: {found[step]['seconds']} s" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
