"""What commands import: a package that a command does not need costs its user seconds at every start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment

HEAVY = {"torch", "megatron", "matplotlib", "pandas", "transformers", "tensorboard", "wandb"}
LAWS = ROOT / "tests" / "laws" / "data"
COMMANDS = {
    "--help": HEAVY | {"numpy", "pydantic", "rich"},
    "train --help": HEAVY | {"numpy", "pydantic", "rich"},
    "describe configs/runs/quickstart.yaml": HEAVY | {"scipy", "jinja2"},
    "scale A2M --method stretch --target configs/models/llama3_2.yaml size=70m": HEAVY | {"scipy", "jinja2"},
    "laws list": HEAVY | {"scipy.optimize", "scipy.stats", "pydantic"},
    f"laws fit learning-rate {LAWS}/learning_rate_sweep.csv --out fit --bootstrap 8": HEAVY - {"matplotlib"},
}


def imported(code: str, *arguments: str, folder: str) -> set[str]:
    """Return the modules that a fresh process has after the code, which prints nothing else in its last line."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_only_what_it_needs(command, tmp_path):
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in command.split()]
    code = """
from hybridtron.cli.main import main
try:
    code = main()
except SystemExit as end:
    code = end.code
print()
print(*sys.modules)
sys.exit(code)"""
    assert not COMMANDS[command] & imported(code, *words, folder=str(tmp_path))


def test_the_first_step_waits_for_no_package_that_it_does_not_need(tiny, tmp_path):
    code = """
import hybridtron as ht

class AtFirstStep(ht.Callback):
    def after_step(self, context, row, logged):
        if row["step"] == 1:
            self.imported = set(sys.modules)

callback = AtFirstStep()
ht.train(sys.argv[1], "train.steps=2", "schedule.warmup_steps=1", callbacks=[callback])
print(*callback.imported)"""
    unneeded = {"torch._dynamo", "torch._inductor", "matplotlib", "pandas", "scipy", "transformers", "wandb"}
    assert not unneeded & imported(code, str(tiny), folder=str(tmp_path))


@pytest.mark.parametrize("imported", ["json", "triton"])
def test_what_is_frozen_is_reported_as_no_leak(imported):
    lines = (f"import gc, {imported}", "from hybridtron.imports import freeze_imported", "freeze_imported()")
    code = "\n".join([*lines, "print(gc.get_freeze_count())"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (int(done.stdout) > 0) is (imported != "triton")
