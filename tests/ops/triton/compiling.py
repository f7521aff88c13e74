"""Translate Triton kernels for an H100, as far as needs no GPU; print each kernel that fails and why.

Kernels get the arguments that the functions of ops/triton give them for tensors without values. Triton's interpreter
runs what its compiler refuses, such as a variable whose shape changes in a loop.
"""

import importlib
from unittest.mock import patch

import torch
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from hybridtron.ops.triton import delta_rule, gla, launch, norm, short_conv

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
TARGET = GPUTarget("cuda", 90, 32)


def translate(kernel, arguments, constants):
    """Make Triton's intermediate representation of a kernel."""
    module, name = kernel.split(":")
    function = getattr(importlib.import_module(f"hybridtron.ops.triton.kernels.{module}"), name)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    given = dict(zip(function.arg_names, arguments, strict=False))
    constants |= {key: value for key, value in given.items() if value is None}
    signature = {key: "constexpr" if key in constants else type_of(given[key]) for key in function.arg_names}
    places = {(function.arg_names.index(key),): value for key, value in constants.items()}
    source, backend, context = ASTSource(function, signature, constexprs=places), make_backend(TARGET), ir.context()
    parsed = backend.parse_options(options)
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    source.make_ir(TARGET, parsed, functions, backend.get_module_map(), context)


def type_of(argument):
    if isinstance(argument, Tensor):
        return NAMES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def tensors(*shapes):
    return [torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for shape in shapes]


def calls():
    keys, values, gates = (2, 100, 4, 128), (2, 100, 4, 64), (2, 100, 4)
    yield gla.gla(*tensors(keys, keys, values, keys), 64)
    yield delta_rule.gated_delta_rule(*tensors((2, 100, 2, 128), (2, 100, 2, 128), values, gates, gates), 64)
    yield norm.gated_rms_norm(*tensors((2, 100, 64), (2, 100, 64), (64,)), 1e-5, 2)
    yield short_conv.short_conv(*tensors((2, 100, 64), (64, 4), (64,)), "silu")


def main():
    launched = {}

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *arguments, **constants: launched.setdefault(
                (self.kernel, *sorted(constants.items())), (arguments, constants)
            )

    with patch.object(launch, "_find", Recorded), patch("hybridtron.ops.dispatch.have_no_values", lambda _: False):
        for output in calls():
            output.sum().backward()
    for (kernel, *_), (arguments, constants) in launched.items():
        try:
            translate(kernel, arguments, dict(constants))
        except Exception as error:
            print(f"{kernel}: {error}")
    print(len({kernel for kernel, *_ in launched}), "kernels")


if __name__ == "__main__":
    main()
