"""One of two processes with halves of linears, which writes down what came after what in their passes, and how far
outputs and gradients are from those of one process with the whole."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from hybridtron.backends.megatron import tensor_overlap
from hybridtron.distributed.config import ParallelConfig, PrecisionConfig
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from hybridtron.tensors import Init, PackedPart, TensorSpec
from hybridtron.training.build import make_backend

WIDTH, INNER = 12, 20  # of the residual stream, and of what a process holds half of
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}
MESSAGES = {  # methods of process groups, also as torch named them before 2.13
    "allreduce": "sum",
    "all_gather_single": "gather",
    "_allgather_base": "gather",
    "reduce_scatter_single": "scatter",
    "_reduce_scatter_base": "scatter",
}
TOKENS = [(16, 1), (2, 1), (6, 1), (14, 1), (10, 3)]  # of each sequence, and sequences; the first for the events


class Events(TorchDispatchMode):
    """Products and messages of a pass, each with its number among those of its kind."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.list: list[str] = []
        self.weight = weight
        self.numbers: dict[str, itertools.count[int]] = {}

    def number(self, kind: str) -> str:
        return f"{kind} {next(self.numbers.setdefault(kind, itertools.count()))}"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            kind = "product" if result.shape != self.weight.shape else "weight product"
            self.list.append(self.number(kind))
        return result

    @contextmanager
    def of_messages(self):
        methods = {name: getattr(dist.ProcessGroup, name) for name in MESSAGES if hasattr(dist.ProcessGroup, name)}
        patches = {name: self.begins(MESSAGES[name], method) for name, method in methods.items()}
        with patch.multiple(dist.ProcessGroup, **patches), self:
            yield

    def begins(self, kind: str, method: Any) -> Any:
        def begin(*arguments: Any) -> Work:
            name = self.number(kind)
            self.list.append(name)
            return Work(method(*arguments), name, self.list)

        return begin


class Work:
    def __init__(self, work: Any, name: str, events: list[str]) -> None:
        self.work, self.name, self.events = work, name, events

    def wait(self) -> None:
        self.events.append(f"wait for {self.name}")
        self.work.wait()


def make_linear(kind: str, parallel: ParallelConfig, context: ParallelContext, whole: dict[str, torch.Tensor]) -> Any:
    """Half of the linear with these weight and bias."""
    from hybridtron.distributed.engine import megatron_config

    megatron = megatron_config(WIDTH, parallel, PrecisionConfig())
    backend = make_backend("megatron", megatron, context, 1e-5)
    part, axis = PackedPart("units", INNER), int(kind == "row")
    weight = TensorSpec(tuple(whole["weight"].shape), Init("input"), (part,), axis=axis)
    bias = TensorSpec(tuple(whole["bias"].shape), Init("zeros"), () if axis else (part,))
    build = backend.row_linear if axis else backend.column_linear
    linear = build(weight, bias)
    with torch.no_grad():
        linear.weight.copy_(weight.shard(whole["weight"], context.shards))
        linear.bias.copy_(bias.shard(whole["bias"], context.shards))
    return linear


def reference(kind: str, tokens: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Weight, bias, input, output and all gradients of one process; the gradient of the output too."""
    draw = torch.Generator().manual_seed(tokens[0])
    out, width = (INNER, WIDTH) if kind == "column" else (WIDTH, INNER)
    sizes = {"weight": (out, width), "bias": (out,), "x": (*reversed(tokens), width), "dy": (*reversed(tokens), out)}
    found = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    found["x"], found["dy"] = found["x"].transpose(0, 1), found["dy"].transpose(0, 1)  # [s, b, n], not contiguous
    weight, bias, x = (found[name].clone().requires_grad_() for name in ("weight", "bias", "x"))
    y = torch.nn.functional.linear(x, weight, bias)
    y.backward(found["dy"])
    return found | {"y": y.detach(), "dx": x.grad, "dweight": weight.grad, "dbias": bias.grad}


def own(whole: torch.Tensor, kind: str, name: str, sequence: bool, rank: int) -> torch.Tensor:
    """The part of a tensor that a process has: its channels inside a layer, its run of tokens between layers."""
    inside = ("y", "dy", "bias", "dbias") if kind == "column" else ("x", "dx")
    if name.endswith("weight"):
        return whole.chunk(2, int(kind == "row"))[rank]
    if name in inside:
        return whole.chunk(2, -1)[rank]
    return whole.chunk(2)[rank] if sequence and not name.endswith("bias") else whole


def passes(linear: Any, kind: str, sequence: bool, whole: dict[str, torch.Tensor], rank: int) -> dict[str, Any]:
    """The events of both passes, and the largest difference of each result."""
    mine = {name: own(tensor, kind, name, sequence, rank) for name, tensor in whole.items()}
    linear.zero_grad()
    x = mine["x"].detach().requires_grad_()
    forward, backward = Events(linear.weight), Events(linear.weight)
    with forward.of_messages():
        y = linear(x)
    with backward.of_messages():
        y.backward(mine["dy"])
    gradients = {"dx": x.grad, "dbias": linear.bias.grad, "dweight": linear.weight.grad}
    found = {"y": y} | {name: each for name, each in gradients.items() if each is not None}
    if kind == "row" and sequence and "dbias" in found:  # each process has its tokens' part of it
        dist.all_reduce(found["dbias"])
    differences = {name: float((value - mine[name]).abs().max()) for name, value in found.items()}
    return {"forward": forward.list, "backward": backward.list, "differences": differences}


def main() -> None:
    torch.set_num_threads(1)
    tensor_overlap.LEAST_ROWS = 1
    folder, here = Path(sys.argv[1]), read_environment()
    found: dict[str, list[Any]] = {}
    with process_groups(ParallelConfig(tensor=2), here) as context:
        for kind, sequence, overlap in itertools.product(("column", "row"), (False, True), (False, True)):
            parallel = ParallelConfig(tensor=2, sequence=sequence, tp_comm_overlap=overlap)
            cases = [reference(kind, tokens) for tokens in TOKENS]
            linears = [make_linear(kind, parallel, context, whole) for whole in cases]
            name = f"{kind}{' sequence' * sequence}{' overlap' * overlap}"
            found[name] = [
                passes(linear, kind, sequence, whole, here.rank) for linear, whole in zip(linears, cases, strict=True)
            ]
            if overlap:
                linears[0].requires_grad_(False)
                found[f"{name} frozen"] = [passes(linears[0], kind, sequence, cases[0], here.rank)]
    (folder / f"{here.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
