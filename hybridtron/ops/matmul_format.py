"""The number format in which products of float32 matrices are computed on a CPU."""

from __future__ import annotations

import functools

import torch

from hybridtron.errors import UserError


def use_matmul_format(number_format: str, device: torch.device) -> None:
    """Let all products of float32 matrices of this process round their factors to `number_format`, float32 or bf16.

    Sums stay float32. Raises UserError where bf16 is asked for and would change nothing: on a GPU, and on a processor
    for which oneDNN has no products of bf16 numbers.
    """
    if number_format == "bf16":
        if device.type != "cpu":
            raise UserError(f"precision.matmul = bf16: is for CPUs; expected float32 on {device}")
        if not multiplies_bf16():
            raise UserError(
                "precision.matmul = bf16: products on this processor are not computed in bf16, for which it would need "
                "AMX-BF16 or an AVX512-BF16 that oneDNN uses; expected float32"
            )
    _set(number_format)


@functools.cache
def multiplies_bf16() -> bool:
    """Return whether products of float32 matrices are computed in bf16 when that is asked for.

    Tried with a product, since oneDNN leaves the instructions of some processors unused.
    """
    x = torch.full((64, 64), 1 + 2**-12)  # 1 in bf16
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    _set("bf16")
    rounded = x @ x
    torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]
    return bool(rounded[0, 0] == 64)


def _set(number_format: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = {"float32": "none", "bf16": "bf16"}[number_format]  # type: ignore[attr-defined]
