"""Kernels compile for a GPU: Triton's interpreter takes much that its compiler refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_kernels_compile_for_an_h100(tmp_path):
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ops.triton.compile_for_h100"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    sources = (ROOT / "hybridtron" / "ops" / "triton").glob("*.py")
    launched = {name for file in sources for name in re.findall(r'"([a-z_]+:[a-z_]+)"', file.read_text())}
    assert len(launched) > 20
    assert compiled == launched
