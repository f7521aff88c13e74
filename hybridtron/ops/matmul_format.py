"""The number format in which products of float32 matrices are computed on a CPU."""

from __future__ import annotations

import torch

from hybridtron.errors import UserError


def use_matmul_format(number_format: str, device: torch.device) -> None:
    """Let all products of float32 matrices of this process round their factors to `number_format`, float32 or bf16.

    Sums stay float32. Raises UserError where bf16 is asked for and would not be faster: on a GPU, and on a processor
    without AMX-BF16 or AVX512-BF16.
    """
    if number_format == "bf16":
        if device.type != "cpu":
            raise UserError(f"precision.matmul = bf16: is for CPUs; expected float32 on {device}")
        if not multiplies_bf16():
            raise UserError(
                "precision.matmul = bf16: this processor has neither AMX-BF16 nor AVX512-BF16; expected float32"
            )
    torch.backends.mkldnn.matmul.fp32_precision = {"float32": "none", "bf16": "bf16"}[number_format]  # type: ignore[attr-defined]


def multiplies_bf16() -> bool:
    """Return whether this processor has instructions that multiply bf16 numbers."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
