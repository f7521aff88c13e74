"""Tests on a CUDA device: `make gpu`. `make test` deselects them; where no CUDA is usable each says so and is skipped.

They run from a checkout: PYTHONPATH=.:SITE python -m pytest -m gpu tests/gpu. docs/gpu.md says more. To try the tests
themselves, HYBRIDTRON_GPU_TESTS=cpu puts a CPU in the place of the device; what needs CUDA is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hybridtron as ht
from hybridtron.api.configs import read_training_config
from hybridtron.backends.transformer_engine.installation import transformer_engine_problem
from hybridtron.ops.vendor import usable
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.run_folder.folder import RunFolder
from tests.conftest import ROOT, TINY, command, environment

sys.path.insert(0, str(ROOT / "benchmarks"))  # for gpu_parts
QUICKSTART = ROOT / "configs" / "runs" / "quickstart.yaml"

SSD = "mamba_ssm.ops.triton.ssd_combined"
DRY = os.environ.get("HYBRIDTRON_GPU_TESTS") == "cpu"


def why_no_cuda() -> str | None:
    """Return why CUDA cannot be used here, or None where it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no usable driver or device"
    return None


@pytest.fixture(scope="session", autouse=True)
def cuda() -> Iterator[torch.device]:
    """The device, with float32 multiplied in float32."""
    if DRY:
        yield torch.device("cpu")
        return
    if reason := why_no_cuda():
        pytest.skip(f"needs CUDA: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        try_one_configuration(patch)
        yield torch.device("cuda")


def try_one_configuration(patch: pytest.MonkeyPatch) -> None:
    """Leave mamba-ssm's kernels one configuration, their cheapest: to try all takes a minute for each shape."""
    if not usable(SSD):
        return
    from mamba_ssm.utils.determinism import _estimate_config_cost as cost
    from triton.runtime.autotuner import Autotuner

    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.ops.triton.")]
    for kernel in (each for module in modules for each in vars(module).values() if isinstance(each, Autotuner)):
        patch.setattr(kernel, "configs", [min(kernel.configs, key=cost)])


@pytest.fixture(scope="session")
def transformer_engine() -> None:
    """For a test of Transformer Engine: left out where it is not installed, failed where it does not work."""
    if find_spec("transformer_engine") is None:
        pytest.skip("Transformer Engine is not installed")
    assert transformer_engine_problem() is None


@pytest.fixture
def needs_cuda() -> None:
    """For a test that means nothing on a CPU."""
    if DRY:
        pytest.skip("needs CUDA")


def train_on(device: str, config: Path, *overrides: str, resume: bool = False) -> list[dict[str, Any]]:
    """Train in this process on CUDA, or in another one that sees no GPU; return the rows of metrics.jsonl."""
    if device == "cuda":
        return ht.train(config, *overrides, resume=resume).metrics
    path = os.environ.get("PYTHONPATH", str(ROOT))
    env = environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=str(min(8, os.cpu_count() or 1)), PYTHONPATH=path)
    arguments = command("train", config, *overrides, *(["--resume"] if resume else []))
    done = subprocess.run(arguments, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return read_metrics(RunFolder(read_training_config(config, *overrides).run_folder).metrics_file)


def losses(rows: list[dict[str, Any]]) -> torch.Tensor:
    """Return the loss of every step."""
    return torch.tensor([row["step_loss"] for row in rows])


def write_config(folder: Path, corpus: Path, **sections: Any) -> Path:
    """Write the config of conftest's tiny run with changed sections, and return its file."""
    config = {**TINY, "folder": str(folder / "run"), **sections}
    config["data"] = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    config["schedule"] = {"type": "constant", "warmup_steps": 2}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file
