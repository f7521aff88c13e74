"""megatron-core is imported, and CUDA calls go to the CPU, inside process groups only."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.conftest import environment

PROLOGUE = """
import sys
import torch
from pathlib import Path

def require_no_megatron():
    found = [name for name in sys.modules if name.split(".")[0] == "megatron"]
    assert not found, found

def cuda_functions():
    found = {name: value for name, value in vars(torch.cuda).items() if callable(value)}
    return found | {"random": torch.cuda.random.get_rng_state}

def refuses_cuda():
    try:
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError):
        return True
    return False
"""


def run(code, cwd):
    """Run the code in a fresh interpreter, in which nothing has been imported."""
    result = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
        env=environment(), cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


WITHOUT_MEGATRON = {
    "tokens": """
        import numpy as np
        from hybridtron.data.datasets.token_dataset import TokenDataset
        from hybridtron.data.datasets.indexed_dataset import write_index
        np.arange(50, dtype=np.uint16).tofile("train.bin")
        write_index(Path("train.idx"), np.array([50]), np.dtype(np.uint16))
        assert TokenDataset("train", 8).samples([0]).shape == (1, 9)
        """,
    "a model on the torch backend": """
        from hybridtron.backends.torch import TorchBackend
        from hybridtron.config.load import load
        from hybridtron.model.initialize import initialize
        from hybridtron.model.language_model import LanguageModel
        from hybridtron.training.config import RunConfig
        config = load(Path(REPOSITORY) / "configs/runs/quickstart.yaml", ["model.vocab_size=300"], RunConfig).model
        model = LanguageModel(config, TorchBackend())
        initialize(model, config, seed=0)
        assert model.logits(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, config.vocab_size)
        """,
    "the MAD and scaling-law packages": """
        import hybridtron.mad
        import hybridtron.laws
        [getattr(package, name) for package in (hybridtron.mad, hybridtron.laws) for name in package.__all__]
        """,
    "describe": """
        from hybridtron.cli.main import main
        assert main(["describe", REPOSITORY + "/configs/runs/quickstart.yaml"]) == 0
        """,
    "mad run": """
        from hybridtron.cli.main import main
        assert main(["mad", "run", "--layers", "mh-hyena", "--preset", "smoke", "--out", "out", "--dry-run"]) == 0
        """,
}


IN_FORKS = """
import json, os, traceback
failed = []
for name, code in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            exec(code, globals())
            require_no_megatron()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print()
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def importing_megatron(tmp_path_factory):
    """Run all in forks of one interpreter that has imported torch alone; return the names of those that failed."""
    pieces = {name: textwrap.dedent(code) for name, code in WITHOUT_MEGATRON.items()}
    repository = environment()["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", f"REPOSITORY = {repository!r}\n{PROLOGUE}{IN_FORKS}", json.dumps(pieces)],
        env=environment(), cwd=tmp_path_factory.mktemp("forks"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", WITHOUT_MEGATRON)
def test_does_not_import_megatron(what, importing_megatron):
    assert what not in importing_megatron


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA calls are CUDA's where it is usable")
def test_cuda_is_as_before_after_process_groups_which_can_be_entered_again(tmp_path):
    run(
        """
        from hybridtron.distributed.config import ParallelConfig
        from hybridtron.distributed.process_groups.environment import Environment
        from hybridtron.distributed.process_groups.groups import process_groups
        from hybridtron.errors import UserError
        from torch.overrides import _len_torch_function_stack

        alone = Environment(0, 1, 0, None, "single")
        before = cuda_functions()
        assert refuses_cuda()
        for _ in range(2):
            with process_groups(ParallelConfig(), alone) as parallel_context:
                assert parallel_context.world_size == 1
                assert torch.zeros(1, device="cuda").device.type == "cpu"
                assert torch.cuda.current_device() == "cpu"
                torch.distributed.all_reduce(torch.zeros(1))
                try:
                    with process_groups(ParallelConfig(), alone):
                        raise AssertionError("entered twice")
                except UserError as error:
                    assert "torch.distributed: is already initialised" in str(error), error
                assert torch.zeros(1, device="cuda").device.type == "cpu"
            assert cuda_functions() == before
            assert _len_torch_function_stack() == 0
            assert refuses_cuda()
        try:
            with process_groups(ParallelConfig(), alone):
                raise ValueError
        except ValueError:
            assert cuda_functions() == before and refuses_cuda()
        """,
        tmp_path,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA calls are CUDA's where it is usable")
def test_a_dry_run_leaves_cuda_as_before(tmp_path):
    run(
        """
        from hybridtron.planner.fake_process_group import fake_process_group
        from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
        from hybridtron.distributed.process_groups.groups import process_groups
        from hybridtron.distributed.config import ParallelConfig
        from hybridtron.distributed.process_groups.environment import Environment
        from hybridtron.errors import UserError

        before = cuda_functions()
        for _ in range(2):
            with cuda_calls_on_cpu(), fake_process_group(3, 8):
                assert torch.distributed.get_world_size() == 8
                try:
                    with process_groups(ParallelConfig(), Environment(0, 1, 0, None, "single")):
                        raise AssertionError("entered inside other groups")
                except UserError as error:
                    assert "already initialised" in str(error), error
            assert cuda_functions() == before and refuses_cuda()
        """,
        tmp_path,
    )
