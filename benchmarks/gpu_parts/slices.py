"""Training steps of the slices: ours in every format, beside megatron-core's own stack at the same shapes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
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
from hybridtron.model.compiling import compile_layers
from hybridtron.training.config import RunConfig

FORMATS = ("bf16", "tensorwise", "delayed", "blockwise")
SEQ_LENS = {4096: 2, 8192: 1}  # sequences of a micro-batch
REPEATS = 8
SAVING: list[dict[str, Any]] = [{"recompute": "full"}, {"cpu_offload_layers": 4}]  # memory; `parallel` of ours alone


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
    environment = Environment(0, 1, 0, None, "single")
    first = run_config(SLICES[0], 32, 1, {}, tiny=True)
    with process_groups(first.parallel, environment) as context:
        for part, name, seq_len in wanted:
            call = partial(_pair, part, name, seq_len, lengths[seq_len], tiny, context, budget, kernels)
            yield from attempted("slice", _label(part, name, seq_len), call)
            _free()
        if tiny or not quick:
            part, seq_len = SLICES[1], next(iter(lengths))
            call = partial(_recorded, part, seq_len, lengths[seq_len], tiny, context, budget)
            yield from attempted("slice", f"{_label(part, 'bf16', seq_len)}, CUDA graphs", call)
            _free()
        if not tiny and not quick:
            call = partial(_compiled, SLICES[0], 4096, SEQ_LENS[4096], context, budget)
            yield from attempted("slice", f"{_label(SLICES[0], 'bf16', 4096)}, torch.compile", call)
            _free()
        longest = max(lengths)
        for parallel in () if quick else SAVING:
            call = partial(
                _pair, SLICES[0], "bf16", longest, lengths[longest], tiny, context, budget, kernels, parallel
            )
            yield from attempted("slice", _label(SLICES[0], "bf16", longest, parallel), call)
            _free()


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
    parallel: Mapping[str, Any] = MappingProxyType({}),
) -> list[Row]:
    """Time a step of ours and of megatron-core's stack in turn; with keys of `parallel`, of ours alone."""
    budget.require(5)
    model = {} if name == "bf16" or tiny else {"backend": "transformer_engine"}
    config = run_config(part, seq_len, batch, _precision(part, name, tiny), tiny, **model)
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
    steps = {"ours": train_step(build_own(config, context), config)}
    rows: list[Row] = []
    try:
        if not parallel:
            engine = build_megatron(part, config, None if name == "bf16" else name, context)
            steps["megatron-core"] = train_step(engine, config)
            steps["megatron-core"]()
    except Exception as error:
        steps.pop("megatron-core", None)
        rows.append(Row("slice", f"{_label(part, name, seq_len, parallel)}, megatron-core", error=first_line(error)))
    found = interleaved(steps, context.device, 1 if tiny else REPEATS, budget, warmup=1 if tiny else 3)
    for side, times in reversed(found.items()):
        label = f"{_label(part, name, seq_len, parallel)}, {side}"
        row = _row(label, config, name, median(times), context.device)
        if side == "ours" and "megatron-core" in found:
            row = row._replace(ratio=ratio(times, found["megatron-core"]))
        rows.insert(0, row)
    if kernels:
        for side, step in steps.items():
            label = f"{_label(part, name, seq_len, parallel)}, {side}, kernels"
            rows += attempted("slice", label, partial(_kernels_into, kernels, label, step))
    return rows


def _recorded(part: Slice, seq_len: int, batch: int, tiny: bool, context: ParallelContext, budget: Budget) -> list[Row]:
    """Time a step with and without CUDA graphs in turn; the ratio is the speed of the former over the latter."""
    budget.require(5)
    config = run_config(part, seq_len, batch, {"format": "bf16"}, tiny)
    graphs = config.model_copy(update={"train": config.train.model_copy(update={"cuda_graphs": True})})
    engine = build_own(graphs, context)
    steps = {"with": train_step(engine, graphs), "without": train_step(build_own(config, context), config)}
    found = interleaved(steps, context.device, 1 if tiny else REPEATS, budget, warmup=1 if tiny else 3)
    if engine.recorded is not None and not engine.recorded.replays:
        raise RuntimeError("no step was replayed")
    label = f"{_label(part, 'bf16', seq_len)}, CUDA graphs"
    row = _row(label, config, "bf16", median(found["with"]), context.device)
    return [row._replace(ratio=ratio(found["with"], found["without"]))]


def _compiled(part: Slice, seq_len: int, batch: int, context: ParallelContext, budget: Budget) -> list[Row]:
    """Time a step with and without torch.compile in turn; the ratio is the speed of the former over the latter."""
    budget.require(60)  # most of which the compiler may take, in the steps before
    config = run_config(part, seq_len, batch, {"format": "bf16"}, tiny=False)
    engine = build_own(config, context)
    compile_layers(engine.chunks.chunks, context.device)
    steps = {"with": train_step(engine, config), "without": train_step(build_own(config, context), config)}
    found = interleaved(steps, context.device, REPEATS, budget)
    label = f"{_label(part, 'bf16', seq_len)}, torch.compile"
    row = _row(label, config, "bf16", median(found["with"]), context.device)
    return [row._replace(ratio=ratio(found["with"], found["without"]))]


def _kernels_into(file: Path, label: str, step: Step) -> list[Row]:
    append_kernels(file, label, step)
    return []


def _label(part: Slice, name: str, seq_len: int, parallel: Mapping[str, Any] = MappingProxyType({})) -> str:
    length = f"{seq_len // 1024}k" if seq_len >= 1024 else str(seq_len)
    return ", ".join([part.name, name, length, *(f"{key} {value}" for key, value in parallel.items())])


def _row(label: str, config: RunConfig, name: str, seconds: float, device: torch.device) -> Row:
    flops = 3 * describe(config.model, config.data.seq_len).flops_forward * config.train.global_batch_size
    peak = peak_flops_per_s(device, "bf16" if name == "bf16" else "fp8")
    rate = flops / seconds
    return Row(
        "slice",
        label,
        seconds=seconds,
        tokens_per_s=config.tokens_per_step / seconds,
        tflops=rate / 1e12,
        mfu=rate / peak if peak else None,
        hfu=rate * 4 / 3 / peak if peak and config.parallel.recompute == "full" else None,
        memory_gb=torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    )


def _free() -> None:
    """Give the memory of the last pair back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
