"""The primitive to paste of docs/new_primitive.md, pasted into a copy of the project and run as the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# Runs the page's commands, given as JSON, in one process.
RUN = """
import json, sys
from hybridtron.cli.main import main
import pytest
for program, *arguments in json.loads(sys.argv[1]):
    code = main(arguments) if program == "hybridtron" else int(pytest.main(arguments))
    assert code == 0, (program, arguments, code)
"""


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    section = (ROOT / "docs" / "new_primitive.md").read_text().partition("## A whole small one to paste")[2]
    return re.findall(r"^```\w+\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("hybridtron", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def insert(file: Path, after: str, line: str) -> None:
    text = file.read_text()
    assert text.count(after) == 1
    file.write_text(text.replace(after, f"{after}{line}\n"))


def test_min_gru_of_the_page_does_all_that_the_page_says(blocks, project):
    make, config, module, registry, row, run_file, commands = blocks
    subprocess.run(["sh", "-ec", make], cwd=project, check=True)
    (project / "hybridtron/mixers/min_gru/config.py").write_text(config)
    (project / "hybridtron/mixers/min_gru/module.py").write_text(module)
    imported, entry = registry.splitlines()
    insert(project / "hybridtron/mixers/registry.py", "config import MLPConfig\n", imported)
    insert(project / "hybridtron/mixers/registry.py", "MIXERS: dict[str, type[MixerConfig]] = {\n", entry)
    insert(project / "tests/mixers/test_contract.py", "PRIMITIVES = {\n", row.rstrip())
    (project / "min_gru.yaml").write_text(run_file)

    lines = [line.split() for line in commands.splitlines()]
    assert [line[:2] for line in lines[:3]] == [["hybridtron", verb] for verb in ("describe", "train", "mad")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)],
        cwd=project, env=environment(PYTHONPATH=str(project)), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "min_gru" in done.stdout
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE), done.stdout
    summary = json.loads((project / "checkpoints/min_gru/summary.json").read_text())
    assert summary["valid_loss"] < 4.5  # 5.55 = ln 257 before the first step
    assert summary["sample"]
