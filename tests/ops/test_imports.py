"""Ops, mixers and the single-process backend know no megatron and no process groups."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, pkgutil, sys
sys.modules["triton"] = None  # importing it is an error
import hybridtron.backends.torch, hybridtron.mixers, hybridtron.ops
count = 0
for package in (hybridtron.ops, hybridtron.mixers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "triton.kernels" not in module.name:
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


TRAINING = """
import sys
sys.modules["triton"] = None  # importing it is an error
import torch
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.dispatch import implementation_table
blocks = {"a": {"type": "gla", "num_heads": 2}, "b": {"type": "mamba2", "head_dim": 8, "state_dim": 8}}
blocks |= {"c": {"type": "short_conv"}, "d": {"type": "hyena_mr"}}
config = build({"hidden_size": 16, "vocab_size": 16, "blocks": blocks, "pattern": "a b c d"}, ModelConfig)
model, tokens = LanguageModel(config, TorchBackend()), torch.zeros(1, 8, dtype=torch.long)
for parameter in model.parameters():
    torch.nn.init.constant_(parameter, 0.1)
model(tokens, tokens)[0].sum().backward()
implementation_table(torch.device("cpu"))
print(*(name for name in sys.modules if name.startswith("hybridtron.ops.triton.kernels.")))
"""


def test_training_on_a_cpu_imports_no_triton():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_ops_name_no_process_group():
    for file in (ROOT / "hybridtron" / "ops").rglob("*.py"):
        text = file.read_text()
        assert "torch.distributed" not in text, file
        assert "process_group" not in text, file
