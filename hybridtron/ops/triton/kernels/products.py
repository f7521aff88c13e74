"""Matrix products inside of kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, WIDEN: tl.constexpr):
    """Return a b in float32; WIDEN is what `launch.widen` says of the tensors. Float32 is not rounded to TF32."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
