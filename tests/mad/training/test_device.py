import pytest
import torch

from hybridtron.errors import UserError
from hybridtron.mad.training.device import require_device


def test_a_gpu_may_be_given_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        require_device(device)
    with pytest.raises(UserError, match="device 'cuda:2': expected at most cuda:1, the last GPU"):
        require_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:1x", "mps"])
def test_other_devices_are_refused(device):
    with pytest.raises(UserError, match=f"device '{device}': expected one of cpu, cuda"):
        require_device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device 'cuda:1': this machine has no usable GPU"):
        require_device("cuda:1")
