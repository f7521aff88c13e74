"""Training steps of the slices: ours in every format, beside megatron-core's own stack at the same shapes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_parts.families import SLICES, Slice, run_config
from gpu_parts.kernel_table import append_kernels
from gpu_parts.megatron_stack import build_megatron
from gpu_parts.own_stack import build_own, train_step
from gpu_parts.rows import Row, attempted, first_line
from gpu_parts.timing import Budget, Step, interleaved, median, ratio
from hybridtron.accounting.describe import describe
from hybridtron.accounting.peak import peak_flops_per_s
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from hybridtron.training.config import RunConfig

FORMATS = ("bf16", "tensorwise", "delayed", "blockwise")
SEQ_LENS = {4096: 2, 8192: 1}  # sequences of a micro-batch
REPEATS = 8


def slice_rows(quick: bool, tiny: bool, budget: Budget, kernels: Path | None = None) -> Iterator[Row]:
    """Yield a row for each slice, format, length and side; those that matter most come first.

    With `kernels` their kernels are appended to that file.
    """
    lengths = {32: 1} if tiny else SEQ_LENS
    wanted = [
        (part, name, seq_len)
        for seq_len in list(lengths)[: 1 if quick else None]
        for part in SLICES[:: 2 if quick else 1]
        for name in FORMATS[: 2 if quick else None]
    ]
    with one_process() as context:
        for part, name, seq_len in wanted:
            call = partial(_pair, part, name, seq_len, lengths[seq_len], tiny, context, budget, kernels)
            yield from attempted("slice", label_of(part, name, seq_len), call)
            free()


def one_process() -> AbstractContextManager[ParallelContext]:
    """Return the groups of one process, as every slice here is laid out."""
    first = run_config(SLICES[0], 32, 1, {}, tiny=True)
    return process_groups(first.parallel, Environment(0, 1, 0, None, "single"))


def _precision(part: Slice, name: str, tiny: bool) -> dict[str, Any]:
    """Return the `precision` section of a format; on a CPU FP8 is emulated."""
    if name == "bf16":
        return {"format": "bf16"}
    section: dict[str, Any] = {"format": "fp8", "recipe": name, "emulate": tiny}
    if tiny or (part.family, name) == ("1B", "blockwise"):  # whose widths its blocks do not divide
        section["skip"] = ["mamba.in_proj"]
    return section


def _pair(
    part: Slice,
    name: str,
    seq_len: int,
    batch: int,
    tiny: bool,
    context: ParallelContext,
    budget: Budget,
    kernels: Path | None,
) -> list[Row]:
    """Time a step of ours and of megatron-core's stack in turn."""
    budget.require(5)
    model = {} if name == "bf16" or tiny else {"backend": "transformer_engine"}
    config = run_config(part, seq_len, batch, _precision(part, name, tiny), tiny, **model)
    steps = {"ours": train_step(build_own(config, context), config)}
    rows: list[Row] = []
    try:
        engine = build_megatron(part, config, None if name == "bf16" else name, context)
        steps["megatron-core"] = train_step(engine, config)
        steps["megatron-core"]()
    except Exception as error:
        steps.pop("megatron-core", None)
        rows.append(Row("slice", f"{label_of(part, name, seq_len)}, megatron-core", error=first_line(error)))
    found = interleaved(steps, context.device, 1 if tiny else REPEATS, budget, warmup=1 if tiny else 3)
    for side, times in reversed(found.items()):
        label = f"{label_of(part, name, seq_len)}, {side}"
        row = row_of("slice", label, config, name, median(times), context.device)
        if side == "ours" and "megatron-core" in found:
            row = row._replace(ratio=ratio(times, found["megatron-core"]))
        rows.insert(0, row)
    if kernels:
        for side, step in steps.items():
            label = f"{label_of(part, name, seq_len)}, {side}, kernels"
            rows += attempted("slice", label, partial(_kernels_into, kernels, label, step))
    return rows


def _kernels_into(file: Path, label: str, step: Step) -> list[Row]:
    append_kernels(file, label, step)
    return []


def label_of(part: Slice, name: str, seq_len: int) -> str:
    length = f"{seq_len // 1024}k" if seq_len >= 1024 else str(seq_len)
    return f"{part.name}, {name}, {length}"


def row_of(kind: str, label: str, config: RunConfig, name: str, seconds: float, device: torch.device) -> Row:
    """Return the row of a step that took these seconds in a format."""
    flops = 3 * describe(config.model, config.data.seq_len).flops_forward * config.train.global_batch_size
    peak = peak_flops_per_s(device, "bf16" if name == "bf16" else "fp8")
    rate = flops / seconds
    return Row(
        kind,
        label,
        seconds=seconds,
        tokens_per_s=config.tokens_per_step / seconds,
        tflops=rate / 1e12,
        mfu=rate / peak if peak else None,
        hfu=rate * 4 / 3 / peak if peak and config.parallel.recompute == "full" else None,
        memory_gb=torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    )


def free() -> None:
    """Give the memory of the last pair back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
