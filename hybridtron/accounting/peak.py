"""Peak matrix-multiply rates, for the share of it that a run reaches (MFU)."""

from __future__ import annotations

import torch

# Dense rates without sparsity, from the vendors' data sheets: FLOP/s by a part of the device's name and by format.
DENSE_PEAKS = {
    "H200": {"fp8": 1979e12, "bf16": 989e12, "fp32": 67e12},
    "H100 PCIe": {"fp8": 1513e12, "bf16": 756e12, "fp32": 51e12},
    "H100": {"fp8": 1979e12, "bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
}


def peak_flops_per_s(device: torch.device, number_format: str) -> float | None:
    """Return the dense peak of one device, or None where it is not known (CPUs) or the device lacks the format."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(number_format) for part, peaks in DENSE_PEAKS.items() if part in name), None)
