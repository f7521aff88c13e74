"""Compile the kernels that functions of `hybridtron.ops.triton` launch for an H100, which takes no GPU.

A launch compiles instead, to the processor's own code by ptxas, with what Triton's launcher knows of the arguments.
Prints the kernels; fails where Triton or ptxas does.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hybridtron.ops.triton import (
    activations,
    cross_entropy,
    delta_rule,
    gla,
    launch,
    norm,
    rotary,
    short_conv,
    toeplitz,
)

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
compiled = {}


class Compiled:
    """A kernel that is compiled where it would be launched; like Triton's launcher it takes integers of 1 as constants
    and says which are multiples of 16."""

    def __init__(self, name, kernel):
        self.name, self.kernel = name, kernel

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **constants):
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
        signature, values, attributes = {}, {}, {}
        for index, name in enumerate(self.kernel.arg_names):
            value = arguments[index] if index < len(arguments) else constants[name]
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif name in constants or value == 1:
                signature[name], values[(index,)] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32"
                if value % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        key = self.name, str(signature), str(values), str(options)
        if key not in compiled:
            source = ASTSource(self.kernel, signature, values, attributes)
            compiled[key] = triton.compile(source, target=TARGET, options=options)
            print(self.name, constants, options, "shared memory", compiled[key].metadata.shared)


find = launch._find
launch._find = lambda name: Compiled(name, find.__wrapped__(name))
toeplitz.widen = lambda x: False  # as on a GPU


def leaf(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def run(function, *inputs):
    outputs = function(*inputs)
    sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()


if __name__ == "__main__":
    x, targets = leaf(2, 24, 64), torch.zeros(2, 24, dtype=torch.long)
    run(lambda *t: norm.rms_norm(*t, 1e-5), x, leaf(64, dtype=torch.float32))
    run(lambda *t: norm.gated_rms_norm(*t, 1e-5, 2), x, x, leaf(64))
    run(lambda *t: norm.norm_and_gate(*t, 1e-5), x, x, leaf(64))
    run(activations.swiglu, x)
    run(activations.relu2, x)
    tables = leaf(24, 8, dtype=torch.float32), leaf(24, 8, dtype=torch.float32)
    run(lambda x: rotary.apply_rotary(x, *tables), leaf(2, 24, 6, 24))
    run(lambda *t: short_conv.short_conv(*t, "silu"), x, leaf(64, 4), leaf(64))
    run(lambda *t: short_conv.gated_short_conv(*t, None), x, x, x, leaf(64, 3))
    run(lambda *t: cross_entropy.linear_cross_entropy(*t, targets), x, leaf(80, 64))
    keys, values, gates = leaf(1, 100, 2, 128), leaf(1, 100, 2, 64), leaf(1, 100, 2)
    run(lambda *t: gla.gla(*t, 64), keys, keys, values, keys)
    run(lambda *t: delta_rule.gated_delta_rule(*t, 64), keys, keys, values, gates, gates)
    for dtype in (torch.bfloat16, torch.float32):
        run(toeplitz.long_conv, leaf(2, 24, 64, dtype=dtype), leaf(4, 32, dtype=torch.float32))
