"""Ops, mixers and the single-process backend know no megatron and no process groups."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, pkgutil, sys
import hybridtron.backends.torch, hybridtron.mixers, hybridtron.ops
count = 0
for package in (hybridtron.ops, hybridtron.mixers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        count += 1
print(count, *(name for name in sys.modules if name.split(".")[0] == "megatron" or "hybridtron.distributed" in name))
"""


def test_no_module_of_ops_or_mixers_imports_megatron():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    count, *found = done.stdout.split()
    assert int(count) > 60
    assert found == []


def test_ops_name_no_process_group():
    for file in (ROOT / "hybridtron" / "ops").rglob("*.py"):
        text = file.read_text()
        assert "torch.distributed" not in text, file
        assert "process_group" not in text, file
