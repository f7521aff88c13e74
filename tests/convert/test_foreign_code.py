"""Python files of a folder neither run nor are asked about, whoever would say yes."""

from __future__ import annotations

import io
import json
import shutil

import pytest

from hybridtron.convert.checkpoints.verify import verify
from hybridtron.convert.hf.evaluate import evaluate_tasks
from hybridtron.convert.transformers_model import load_transformers_model
from hybridtron.errors import UserError

CODE = """
from pathlib import Path
Path({mark!r}).write_text("it ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that foreign code would leave; standard input agrees to everything."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("hybridtron.convert.hf.evaluate.resolve_tasks", lambda tasks: (tasks, None))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "mark"


@pytest.fixture
def folder(theirs, tmp_path, mark):
    """A Llama under an architecture of its own, whose code is beside it."""
    folder = tmp_path / "folder"
    shutil.copytree(theirs["llama"].folder, folder, ignore=shutil.ignore_patterns("gradients"))
    content = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "foreign", "auto_map": names}))
    (folder / "foreign.py").write_text(CODE.format(mark=str(mark)))
    return folder


def test_code_of_a_model(folder, mark, tmp_path, capsys):
    with pytest.raises(UserError, match="transformers cannot build it"):
        verify(folder, folder, logits=True)
    with pytest.raises(UserError, match="transformers cannot build it"):
        load_transformers_model(folder)
    with pytest.raises(UserError, match="not a whole Hugging Face folder"):
        evaluate_tasks([folder], ["any"])
    assert not mark.exists()
    assert "y/N" not in capsys.readouterr().out


def test_code_of_a_tokenizer(theirs, folder, mark, capsys):
    shutil.copyfile(theirs["llama"].folder / "config.json", folder / "config.json")
    names = {"AutoTokenizer": ["foreign.Tokenizer", "foreign.Tokenizer"]}
    settings = {"tokenizer_class": "ForeignTokenizer", "auto_map": names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="not a whole Hugging Face folder"):
        evaluate_tasks([folder], ["any"])
    assert not mark.exists()
    assert "y/N" not in capsys.readouterr().out
