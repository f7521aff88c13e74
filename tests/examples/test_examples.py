"""Every example runs as its docstring says, in a folder of its own."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.mixers.registry import MIXERS
from tests import warm
from tests.conftest import ROOT, command, environment

EXAMPLES = ROOT / "examples"
TINY_RUN = (
    "data.seq_len=32", "train.steps=6", "train.eval_every=0", "train.global_batch_size=4", "train.micro_batch_size=4",
    "train.log_every=1", "train.sample_tokens=0", "train.eval_sequences=4", "schedule={type: constant}",
    "model.hidden_size=64", "model.blocks.attn.num_heads=2",
)  # fmt: skip


AS_SCRIPT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder in which the paths of the examples lead to the project's files."""
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(file: str, folder: Path, *arguments: str) -> str:
    finished = warm.run(
        [sys.executable, "-c", AS_SCRIPT, str(EXAMPLES / file), *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def tiny_data(corpus: Path) -> tuple[str, ...]:
    return *TINY_RUN, f"data.train={corpus}/train", f"data.valid={corpus}/valid"


def test_train_and_look_at_the_loss(folder, corpus):
    text = run("train_and_look_at_the_loss.py", folder, *tiny_data(corpus))
    assert "step   6  loss" in text
    assert "largest gradient" in text
    assert (folder / "checkpoints/example/loss.png").is_file()


def test_own_primitive(folder):
    text = run("own_primitive.py", folder)
    first, last = (float(line.split()[-1]) for line in (text.splitlines()[0], text.splitlines()[4]))
    assert last < first / 2


def test_own_primitive_gives_the_same_token_by_token():
    config = runpy.run_path(str(EXAMPLES / "own_primitive.py"))["MinGRUConfig"](type="min_gru", hidden_size=8)
    MIXERS.pop("min_gru")
    mixer = config.build(TorchBackend())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        x = torch.randn(150, 2, 8, generator=torch.Generator().manual_seed(1))
        state, steps = mixer.initial_state(2), []
        for token in x:
            y, state = mixer.step(token, state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps), mixer(x), rtol=1e-4, atol=1e-5)


def test_mad_of_three_patterns(folder):
    assert run("mad_of_three_patterns.py", folder).count("accuracy 0.") == 3


def test_search_and_stretch(folder):
    text = run("search_and_stretch.py", folder, "found")
    assert "best of 40" in text
    assert "stretched to" in text
    assert (folder / "found/report.html").is_file()


def test_fit_a_law(folder):
    text = run("fit_a_law.py", folder, "law")
    assert "alpha" in text
    assert (folder / "law/report.html").is_file()


SHORT = sorted(path.name for path in (EXAMPLES / "short").glob("*.py"))


@pytest.mark.parametrize("file", SHORT)
def test_short_examples_have_five_lines_at_most(file):
    lines = [line for line in (EXAMPLES / "short" / file).read_text().splitlines() if line.strip()]
    assert len(lines) <= 5
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("file", SHORT)
def test_short_examples_run(file, folder, tiny):
    if file == "load_and_generate.py":
        trained = warm.run(command("train", tiny, "folder=checkpoints/quickstart"), cwd=folder, env=environment())
        assert trained.returncode == 0
    run(os.path.join("short", file), folder)


@pytest.mark.parametrize("file", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_notebooks_run(file, folder, corpus, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for name, value in environment(EXAMPLE_OVERRIDES="\n".join(tiny_data(corpus))).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / file, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_there_are_two_notebooks_without_outputs():
    import nbformat

    files = sorted(EXAMPLES.glob("*.ipynb"))
    assert len(files) == 2
    for file in files:
        assert not any(cell.get("outputs") for cell in nbformat.read(file, as_version=4).cells)
