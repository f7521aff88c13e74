"""One queue of kernels for tensor parallelism, where the GPU needs that, before anything starts CUDA."""

import ctypes
import os

import pytest

from hybridtron.config.load import load
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.process_groups import device_queues
from hybridtron.distributed.process_groups.device_queues import QUEUES, major_capability, order_messages
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.training import run
from hybridtron.training.config import RunConfig


@pytest.fixture
def gpu(monkeypatch):
    """Make the first GPU one of this major compute capability; None: there is none."""
    monkeypatch.setenv(QUEUES, "")  # so that what a test sets is undone
    monkeypatch.delenv(QUEUES)
    return lambda major: monkeypatch.setattr(device_queues, "major_capability", lambda: major)


@pytest.mark.parametrize(
    ("major", "tensor", "queues"),
    [(9, 2, "1"), (8, 4, "1"), (None, 2, "1"), (10, 2, None), (12, 2, None), (9, 1, None)],
)
def test_tensor_parallelism_has_one_queue_before_blackwell(gpu, major, tensor, queues):
    gpu(major)
    order_messages(ParallelConfig(tensor=tensor))
    assert os.environ.get(QUEUES) == queues


def test_what_the_user_has_set_stays(gpu, monkeypatch):
    gpu(9)
    monkeypatch.setenv(QUEUES, "32")
    order_messages(ParallelConfig(tensor=2))
    assert os.environ[QUEUES] == "32"


class Nvml:
    """The library of a driver that fails in one of its functions, if in any."""

    def __init__(self, fails="none"):
        self.fails = fails
        self.is_open = False

    def nvmlInit_v2(self):
        self.is_open = self.fails != "nvmlInit_v2"
        return int(not self.is_open)

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 4321 + index
        return int(self.fails == "nvmlDeviceGetHandleByIndex_v2")

    def nvmlDeviceGetCudaComputeCapability(self, device, major, minor):
        assert device.value == 4321
        major._obj.value, minor._obj.value = 10, 3
        return int(self.fails == "nvmlDeviceGetCudaComputeCapability")

    def nvmlShutdown(self):
        self.is_open = False


@pytest.mark.parametrize(
    "fails", ["none", *(name for name in vars(Nvml) if name.startswith("nvml") and "S" not in name)]
)
def test_the_driver_tells_the_capability(monkeypatch, fails):
    library = Nvml(fails)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library if name == "libnvidia-ml.so.1" else None)
    assert major_capability() == (10 if fails == "none" else None)
    assert not library.is_open


def test_no_driver_tells_none(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert major_capability() is None


def test_training_sets_it_before_it_asks_for_the_memory_of_the_gpu(gpu, monkeypatch, tmp_path):
    """Which starts CUDA."""

    class Reached(Exception):
        pass

    def prepare(*_):
        assert os.environ[QUEUES] == "1"
        raise Reached

    gpu(9)
    monkeypatch.setattr(run, "prepare", prepare)
    monkeypatch.setattr(run, "require_wandb", lambda config: None)
    config = load("configs/runs/quickstart.yaml", ["parallel.tensor=2", f"folder={tmp_path / 'run'}"], RunConfig)
    with pytest.raises(Reached):
        run.train(config, Environment(0, 2, 0, None, "torchrun"))
