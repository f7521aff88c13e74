"""Run every primitive on a fake CUDA device, by hand: a CUDA build of torch is needed, a driver or GPU is not.

    PYTHONPATH=. python -m tests.gpu.fake_cuda [PRIMITIVE ...]

Inside FakeTensorMode tensors have a device, a shape and no values: tensors of two devices in one operation, wrong
shapes and operations that wait for the device show. So do copies from the host after a first pass, which a CUDA graph
would make from memory that was given back. Dispatching tokens to experts, which waits once, is replaced. Kernels do not
run, so nothing is said of values; implementations of vendors' packages and of Triton, which fake tensors cannot enter,
are left out of the table of operations.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind
from hybridtron.backends.even_dispatcher import EvenDispatcher
from hybridtron.backends.torch import TorchBackend
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.dispatch import OPERATIONS, implementation_table
from tests.gpu.primitives import CASES, model_config

LENGTHS = (37, 200, 256)
FORMATS = (torch.float32, torch.bfloat16)
COPIES = (torch.ops.aten.copy_, torch.ops.aten._to_copy)


def leave_out_kernels() -> None:
    """Keep of every operation what consists of PyTorch's own operations."""
    implementation_table(torch.device("cpu"))
    for name, operation in OPERATIONS.items():
        kept = tuple(
            each for each in operation.implementations if "PyTorch" in each.name or each.condition == "otherwise"
            or each.name in ("scaled_dot_product_attention", "torch.nn.functional.rms_norm", "short_conv")
        )  # fmt: skip
        OPERATIONS[name] = operation._replace(implementations=kept)


class _Backend(TorchBackend):
    """An even load of experts stands for the one that a GPU would be asked for."""

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        return EvenDispatcher(kind, num_experts, top_k, capacity_factor, None)


class NoCopies(TorchDispatchMode):
    """Refuse operations that bring a tensor from the CPU to CUDA."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), result))
        copies = func.overloadpacket in COPIES  # of single numbers too, which other operations take as arguments
        if any(x.is_cpu and (copies or x.dim()) for x in given) and any(x.is_cuda for x in (*given, *made)):
            raise RuntimeError(f"{func}: a copy from the host")
        return result


def forward(case: str, dtype: torch.dtype, seq_len: int) -> None:
    """Go forward twice; raises what PyTorch raises."""
    config = model_config(case)
    with FakeTensorMode(allow_non_fake_inputs=False):
        model = LanguageModel(config, _Backend(dtype, torch.device("cuda"), config.norm_eps))
        tokens = torch.zeros(2, seq_len, dtype=torch.long, device="cuda")
        losses, log_z = model(tokens, tokens)
        assert losses.device.type == log_z.device.type == "cuda"
        with nullcontext() if CASES[case]["type"] == "moe" else NoCopies():  # moe is not recorded
            model(tokens, tokens)


def main(cases: list[str]) -> int:
    """Print a line for each case; return 1 where one failed."""
    leave_out_kernels()
    failed = 0
    for case in cases or CASES:
        for dtype in FORMATS:
            for seq_len in LENGTHS:
                try:
                    forward(case, dtype, seq_len)
                except Exception as error:
                    failed = 1
                    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/hybridtron/" in f.filename]
                    place = f"{frames[-1].filename.split('/hybridtron/')[-1]}:{frames[-1].lineno}" if frames else ""
                    lines = str(error).strip().splitlines() or [""]
                    print(f"FAIL {case}, {dtype}, {seq_len}: {place}: {type(error).__name__}: {lines[0][:200]}")
                    break
            else:
                print(f"ok   {case}, {dtype}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
