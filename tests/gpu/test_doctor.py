"""`hybridtron doctor` on a GPU."""

import json

import pytest
import torch

from hybridtron.cli.main import main

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_cuda")]


def test_doctor_describes_the_gpu_and_finds_no_problem(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["gpu"]["name"] == torch.cuda.get_device_name()
    assert all(report["gpu"][key] for key in ("capability", "memory", "cuda", "cudnn", "nccl", "triton"))
    assert report["processes"] == "nccl"
    print(json.dumps(report, indent=2))
