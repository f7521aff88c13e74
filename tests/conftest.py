"""What several tests share: a tiny corpus, a tiny run, and the command line as a user calls it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from tests.captured_stderr import captured_stderr  # noqa: F401, a fixture of all tests
from tests.slurm_cluster import Cluster, missing_programs, running_cluster
from tests.warm import run as run_warm

torch.set_num_threads(1)
# Without bytecode each process that a test starts compiles all the modules that it imports: half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which a test of any file may do
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here and in all processes that tests start

gc.disable()  # until all tests are collected

ROOT = Path(__file__).parent.parent

LONG = (  # files of few tests that take long: at the end they would leave the other workers without work
    "ablations/test_slurm.py",
    "benchmarks/test_convert.py",
    "benchmarks/test_gpu.py",
    "cli/test_jobs.py",
    "distributed/test_fuzz_layouts.py",
    "faults/test_campaign.py",
    "monitoring/test_launched.py",
    "ops/triton/test_compile.py",
    "test_quickstart.py",
    "training/whole_runs/test_fp8.py",
    "training/whole_runs/test_layouts.py",
    "training/whole_runs/test_torchrun.py",
)

TINY = {
    "name": "tiny",
    "seed": 7,
    "model": {
        "hidden_size": 32,
        "blocks": {
            "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8, "chunk_size": 16},
            "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
            "mlp": {"type": "swiglu", "ffn_hidden_size": 64},
            "ffn": {"type": "mlp", "ffn_hidden_size": 64},
        },
        "pattern": "mamba mlp attn ffn",
    },
    "data": {"tokenizer": "byte", "seq_len": 32},
    "train": {"steps": 20, "global_batch_size": 4, "micro_batch_size": 2, "log_every": 1, "eval_sequences": 8},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 4},
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with what is long, and end with files of few tests; pytest-xdist must keep this order."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        first = {ROOT / "tests" / name for name in LONG}
        items.sort(key=lambda item: (item.path not in first, -tests[item.path]))


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collections, of which each training in a test makes one."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Thaw what was frozen, which Triton would report as leaks."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Leave what the modules of tests before have left out of the collections of this one, too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and valid token files of a few thousand bytes each."""
    folder = tmp_path_factory.mktemp("corpus")
    words = ["the", "a", "model", "layer", "state", "of", "attention", "scan", "and", "is", "in", "token"]
    draw = np.random.default_rng(0)
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(draw.choice(words, size=120)) + "\n")
    prepare(find_sources([folder]), folder / "tokens", tokenizer="byte", valid_fraction=0.2)
    return folder / "tokens"


@pytest.fixture
def tiny(tmp_path: Path, corpus: Path) -> Path:
    """The config file of a run of seconds, which writes into this test's own folder."""
    config = {**TINY, "folder": str(tmp_path / "run")}
    config["data"] = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM cluster of two nodes, which this process's programs of SLURM talk to."""
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.environment[name])
        yield cluster


Hybridtron = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hybridtron(tmp_path: Path) -> Hybridtron:
    """Run the command line to its end, in this test's folder, on one thread per process."""

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return run_warm(
            command(*arguments), cwd=tmp_path, env=environment(**env), capture_output=True, text=True, timeout=300
        )

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hybridtron", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    root = str(ROOT)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **more}
