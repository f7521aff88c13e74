"""Benchmarks answer bad input as the command line does: one line, exit code 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("faults", ["none.jsonl"], "none.jsonl: No such file or directory"),
        ("faults", ["bad.jsonl", "--json", "out.json"], "bad.jsonl, line 1: expected a row of results.jsonl"),
        ("faults", ["bad.jsonl", "--jsn", "out.json"], "unrecognized arguments: --jsn out.json (nearest: --json)"),
        ("gpu", ["--quik"], "unrecognized arguments: --quik (nearest: --quick)"),
    ],
)
def test_bad_input_is_one_line(name, arguments, expected, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"hybridtron: error: {expected}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_every_benchmark_and_tool_has_the_parser_and_the_ends_of_the_command_line():
    for file in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        text = file.read_text()
        if "ArgumentParser(" in text and file.name != "startup.py":  # which measures other checkouts, and imports none
            assert "import ArgumentParser" in text, file
            assert "sys.exit(exit_code(main))" in text, file
