"""tests/gpu/test_ops.py and benchmarks/gpu.py skip what takes no call: each kernel for CUDA must take one."""

from types import SimpleNamespace

import pytest
import torch

from hybridtron.ops import vendor
from hybridtron.ops.attention import flash_window
from hybridtron.ops.conv import vendor as conv_vendor
from hybridtron.ops.dispatch import OPERATIONS, implementation_table
from hybridtron.ops.ssm import vendor as ssm_vendor
from hybridtron.ops.triton import launch
from tests.conftest import ROOT

KERNELS = ("Triton", "causal-conv1d", "mamba-ssm", "flash attention of PyTorch")


class Taken(Exception):
    """Raised in place of a kernel."""


def taken(*arguments):
    raise Taken


@pytest.fixture
def calls(monkeypatch):
    """The module of calls, with tensors of a CPU taken for such of an H100 on which every package is installed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(launch, "takes", lambda *_: True)
    monkeypatch.setattr(vendor, "_imported", lambda module: SimpleNamespace())
    for module in (conv_vendor, ssm_vendor, flash_window):
        monkeypatch.setattr(module, "on_cuda", lambda *_: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    from gpu_parts import op_calls

    return op_calls


def test_every_kernel_takes_its_call(calls, monkeypatch):
    implementation_table(torch.device("cpu"))
    kernels = [(name, each) for name in OPERATIONS for each in OPERATIONS[name].implementations if each.name in KERNELS]
    missed = []
    for name, kernel in kernels:
        call = calls.call_of(name, kernel.name)
        only = OPERATIONS[name]._replace(implementations=(kernel._replace(function=taken),))
        with monkeypatch.context() as patch:
            patch.setitem(OPERATIONS, name, only)
            try:
                call.call(calls.SMALL, *call.inputs(calls.Draw(calls.SMALL, "cpu", torch.bfloat16)))
            except Taken:
                continue
            except LookupError:
                missed.append((name, kernel.name))
    assert missed == []
    assert {kernel.name for _, kernel in kernels} == set(KERNELS)
