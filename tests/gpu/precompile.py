"""Compile Triton kernels for an H100 where there is no GPU, into a cache for a machine that has one.

    TRITON_CACHE_DIR=DIR PYTHONPATH=.:SITE python -m tests.gpu.precompile

On a GPU the kernels of tests/gpu/test_ops.py and what mamba-ssm's autotuner tries for the shapes of benchmarks/gpu.py
take minutes to compile. Here a stand-in for the driver lets a launch compile and nothing else, on CPU tensors. The
cache serves the same versions of Triton and of the packages, at the same path. Wanted: triton, and mamba-ssm for its
kernels; no CUDA.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # for gpu_parts
from gpu_parts.op_calls import CALLS, WIDE, Draw, Sizes, call_of

from hybridtron.ops import triton as own
from hybridtron.ops.dispatch import OPERATIONS, implementation_table

TARGET = GPUTarget("cuda", 90, 32)
MULTIPROCESSORS = 132  # of an H100
READ = (".cubin", ".json")  # what a launch reads of the cache; the rest is for people and is emptied
# heads, head_dim, groups and state_dim: the slices of benchmarks/gpu.py, and the models of tests/gpu.
SCANS = [(128, 64, 8, 128), (64, 64, 8, 128), (8, 64, 1, 64), (8, 64, 2, 64)]
CHUNKS = (128, 256)  # megatron-core's and ours


class _Driver:
    """What Triton asks of a driver to compile."""

    get_current_target = staticmethod(lambda: TARGET)
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))
    get_benchmarker = staticmethod(lambda: _once)


def _once(call: Callable[[], object], **_: object) -> list[float]:
    """Stand for a timing, of which all come out equal."""
    call()
    return [1.0, 1.0, 1.0]


def compile_only() -> set[str]:
    """Let launches compile; return the hashes of the kernels compiled, to which each adds its own."""
    triton.runtime.driver.set_active(_Driver())
    run, compiled = JITFunction.run, set()

    def warm_up(self: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **constants)
        compiled.add(kernel.hash)
        return kernel

    JITFunction.run = warm_up
    torch.cuda.device = lambda *_: torch.autograd.profiler.record_function("")  # a context that does nothing
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    return compiled


def own_kernels(sizes: list[Sizes]) -> None:
    """Compile what the implementations by our kernels launch, forward and backward."""
    implementation_table(torch.device("cpu"))
    for module in vars(own).values():
        if hasattr(module, "widen"):
            module.widen = lambda x: False  # as on a GPU
    for name in CALLS:
        operation = OPERATIONS[name]
        for entry in (one for one in operation.implementations if one.name == "Triton"):
            OPERATIONS[name] = operation._replace(implementations=(entry._replace(accepts=lambda *_: True),))
            call = call_of(name, entry.name)
            cases = [(size, dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
            for size, dtype in [*cases, (WIDE, torch.bfloat16)]:
                inputs = call.inputs(Draw(size, "cpu", dtype))
                y = call.call(size, *inputs)
                torch.autograd.grad(y, inputs, torch.zeros_like(y))
        OPERATIONS[name] = operation


def mamba_ssm_kernels(heads: int, head_dim: int, groups: int, state_dim: int, chunk: int) -> None:
    """Compile every configuration of mamba-ssm's kernels for its Mamba-2, and for its scan alone."""
    from mamba_ssm.ops.triton import ssd_combined as package

    package.causal_conv1d_fwd_function = lambda x, *_: x.clone()
    package.causal_conv1d_bwd_function = lambda x, w, b, g, seq, initial, final, dx, *_: (
        torch.empty_like(x) if dx is None else dx, torch.zeros_like(w), torch.zeros_like(b), None,
    )  # fmt: skip

    def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.rand(shape, dtype=dtype).requires_grad_()

    wide = torch.float32
    inner, shared = heads * head_dim, 2 * groups * state_dim
    a, d, bias = (leaf(heads, dtype=wide) for _ in range(3))
    b, c = (leaf(2, 1024, groups, state_dim) for _ in range(2))
    x, steps = leaf(2, 1024, heads, head_dim), leaf(2, 1024, heads, dtype=wide)
    package.mamba_chunk_scan_combined(x, steps, a, b, c, chunk, D=d).sum().backward()
    y = package.mamba_split_conv1d_scan_combined(
        leaf(2, 1024, 2 * inner + shared + heads), leaf(inner + shared, 4), leaf(inner + shared), bias, a, d, chunk,
        activation="silu", rmsnorm_weight=leaf(inner), rmsnorm_eps=1e-5, headdim=head_dim, ngroups=groups,
        norm_before_gate=False,
    )  # fmt: skip
    y.backward(torch.ones_like(y))


def main() -> None:
    from importlib.util import find_spec

    from tests.gpu.test_ops import SIZES

    cache = Path(os.environ["TRITON_CACHE_DIR"])
    compiled = compile_only()
    own_kernels(list(SIZES.values()))
    print(f"own kernels: {len(compiled)}", flush=True)
    if find_spec("mamba_ssm"):
        for scan in SCANS:
            for chunk in CHUNKS:
                mamba_ssm_kernels(*scan, chunk)
                print(f"with mamba-ssm, {scan}, chunks of {chunk}: {len(compiled)}", flush=True)
    for file in (each for each in cache.rglob("*") if each.is_file() and each.suffix not in READ):
        os.truncate(file, 0)


if __name__ == "__main__":
    main()
