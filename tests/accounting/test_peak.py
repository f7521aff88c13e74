"""Peaks by the name of the device and the format of products."""

import pytest
import torch

from hybridtron.accounting.peak import peak_flops_per_s


@pytest.mark.parametrize(
    ("name", "number_format", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979e12),
        ("NVIDIA H100 PCIe", "fp8", 1513e12),
        ("NVIDIA H200", "fp8", 1979e12),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peak_of_a_gpu(monkeypatch, name, number_format, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops_per_s(torch.device("cuda"), number_format) == peak


def test_a_cpu_has_none():
    assert peak_flops_per_s(torch.device("cpu"), "fp32") is None
