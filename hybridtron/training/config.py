"""A run's whole config, and what its sections must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from hybridtron.config.nearest import one_of
from hybridtron.config.schema import FolderName, Strict, problem
from hybridtron.data.config import DataConfig
from hybridtron.distributed.config import ParallelConfig, PrecisionConfig
from hybridtron.model.config import ModelConfig
from hybridtron.model.quantized import unknown_entry
from hybridtron.model.tensors import GROUPS
from hybridtron.training.sections.checkpoint import CheckpointConfig
from hybridtron.training.sections.grown_from import GrownFromConfig
from hybridtron.training.sections.optimizer import OptimizerConfig
from hybridtron.training.sections.schedule import DECAYING, ScheduleConfig
from hybridtron.training.sections.train import INIT_KEYS, TrainConfig


class RunConfig(Strict):
    """One training run."""

    name: FolderName = Field(description="Names the run folder.")
    folder: str | None = Field(None, description="Where the run is written; by default checkpoints/NAME.")
    seed: int = Field(1234, ge=0, description="Of the initial weights and the order of the data.")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    grown_from: GrownFromConfig | None = Field(
        None, description="With it, the small pattern that the model was grown from, which `hybridtron scale` records."
    )

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        for error in self._disagreements():
            raise error
        return self

    def _disagreements(self) -> Iterator[Exception]:
        train, schedule, source = self.train, self.schedule, self.grown_from
        if source and not source.leads_to(self.model.layer_names):
            expected = f"a pattern that {source.method} makes model.pattern of, or no grown_from"
            yield problem("grown_from.pattern", source.pattern, expected)
        for key in INIT_KEYS:
            if train.init_from is None and getattr(train, key) != TrainConfig.model_fields[key].default:
                yield problem(f"train.{key}", getattr(train, key), "train.init_from beside it")
        if train.global_batch_size % train.micro_batch_size:
            expected = f"a divisor of train.global_batch_size {train.global_batch_size}"
            yield problem("train.micro_batch_size", train.micro_batch_size, expected)
        if schedule.type == "wsd" and not 1 <= schedule.decay_steps <= train.steps - schedule.warmup_steps:
            expected = (
                f"at least 1 with type wsd, and with warmup_steps {schedule.warmup_steps} no more than train.steps "
                f"{train.steps} together, such as {_shorter(train.steps, schedule)}"
            )
            yield problem("schedule.decay_steps", schedule.decay_steps, expected)
        if schedule.type == "power":
            yield from self._power_problems()
        if schedule.type not in DECAYING and schedule.decay_steps:
            yield problem("schedule.decay_steps", schedule.decay_steps, f"0 with type {schedule.type}")
        if schedule.warmup_steps > train.steps:
            expected = f"at most train.steps {train.steps}, such as {_shorter(train.steps, schedule)}"
            yield problem("schedule.warmup_steps", schedule.warmup_steps, expected)
        yield from self._batch_problems()
        yield from self._clip_problems()
        yield from self._layout_problems()
        yield from self._precision_problems()

    def _power_problems(self) -> Iterator[Exception]:
        steps, schedule = self.train.steps, self.schedule
        if schedule.decay_steps > steps - schedule.warmup_steps:
            expected = f"at most train.steps - warmup_steps = {max(0, steps - schedule.warmup_steps)}"
            yield problem("schedule.decay_steps", schedule.decay_steps, expected)
        if 0 < schedule.flat_steps < schedule.warmup_steps:
            expected = f"at least warmup_steps {schedule.warmup_steps}, or 0 for as many"
            yield problem("schedule.flat_steps", schedule.flat_steps, expected)

    def _clip_problems(self) -> Iterator[Exception]:
        model = self.model
        absent = {
            "head": model.tie_embeddings,
            "residual": not model.residual.end_tensors(model),
            "mtp": model.mtp is None,
        }
        groups = [*dict.fromkeys(model.layer_names), *(group for group in GROUPS if not absent.get(group))]
        for name, limit in self.optimizer.clip_groups.items():
            if name not in groups:
                yield problem(f"optimizer.clip_groups.{name}", limit, one_of(name, groups))
            elif name in GROUPS and name in model.layer_names:
                expected = f"another name for the block {name}, which is that of a group too"
                yield problem(f"optimizer.clip_groups.{name}", limit, expected)

    def _batch_problems(self) -> Iterator[Exception]:
        train = self.train
        for i, stage in enumerate(train.batch_warmup):
            if stage.global_batch_size % train.micro_batch_size:
                expected = f"a multiple of train.micro_batch_size {train.micro_batch_size} "
                expected += f"({multiples(stage.global_batch_size, train.micro_batch_size)})"
                yield problem(f"train.batch_warmup[{i}].global_batch_size", stage.global_batch_size, expected)

    def _layout_problems(self) -> Iterator[Exception]:
        parallel, model = self.parallel, self.model
        runs = parallel.context * (parallel.tensor if parallel.sequence else 1)
        if self.data.seq_len % runs:
            processes = "parallel.context x tensor" if parallel.sequence else "parallel.context"
            yield problem(
                "data.seq_len",
                self.data.seq_len,
                f"a multiple of {processes} = {runs} ({multiples(self.data.seq_len, runs)})",
            )
        if model.backend == "torch" and parallel.model_size // parallel.pipeline > 1:
            yield problem("model.backend", "torch", "megatron, for tensor or context parallelism")
        layers, written = len(model.layer_names), len(model.parsed_pattern.cuts) + 1
        if parallel.num_stages > layers:
            expected = f"at most {layers} stages (pipeline x virtual_pipeline), one for each layer"
            yield problem("parallel.pipeline", parallel.pipeline, expected)
        if parallel.num_stages > 1 and 1 < written != parallel.num_stages:
            expected = (
                f"{written} stages (pipeline x virtual_pipeline) as the pattern's '|' cut it, or a pattern without '|'"
            )
            yield problem("parallel.pipeline", parallel.pipeline, expected)
        if model.mtp and model.mtp.depth >= self.data.seq_len:
            yield problem("model.mtp.depth", model.mtp.depth, f"less than data.seq_len {self.data.seq_len}")
        for name in sorted(model.used_blocks) if self.data.isolates else ():
            if any(getattr(mixer, "capacity_factor", None) is not None for mixer in model.blocks[name].mixers):
                limit = f"model.blocks.{name}.capacity_factor"
                yield problem("data.documents", "isolate", f"flow with {limit}, which is a share of whole sequences")
        if parallel.cpu_offload_layers > layers:
            expected = f"at most {layers}, the model's layers"
            yield problem("parallel.cpu_offload_layers", parallel.cpu_offload_layers, expected)
        if isinstance(parallel.recompute, dict):
            for name in parallel.recompute:
                if name not in model.blocks:
                    yield problem(f"parallel.recompute.{name}", parallel.recompute[name], one_of(name, model.blocks))

    def _precision_problems(self) -> Iterator[Exception]:
        precision, model = self.precision, self.model
        if unknown := unknown_entry(model, precision.skip):
            yield problem("precision.skip", *unknown)
        if precision.matmul != "float32" and precision.format != "fp32":
            yield problem("precision.matmul", precision.matmul, f"float32 with precision.format {precision.format}")
        if precision.format != "fp8":
            return
        if not precision.emulate and model.backend in ("torch", "megatron"):
            expected = f"true with model.backend {model.backend}, which rounds to FP8 and multiplies in fp32"
            yield problem("precision.emulate", False, expected)
        recomputes = any(self.parallel.recompute_of(name) != "none" for name in model.used_blocks)
        if precision.recipe == "delayed" and not precision.emulate and recomputes:  # its scales would change twice
            expected = "tensorwise, or emulate true, or parallel.recompute none"
            yield problem("precision.recipe", "delayed", expected)
        if 2 * precision.first_last_bf16 >= len(model.layer_names):
            expected = f"less than half of the {len(model.layer_names)} layers, or format bf16"
            yield problem("precision.first_last_bf16", precision.first_last_bf16, expected)

    @property
    def run_folder(self) -> Path:
        return Path(self.folder) if self.folder else Path("checkpoints") / self.name

    def identity(self) -> dict[str, Any]:
        """Return the sections that decide what is measured, without names, places and keys that have no effect.

        The default backend has the name of the default before it: studies and searches that began with that go on.
        """
        unused = {"name", "folder", "checkpoint", "grown_from"}
        identity = self.model_dump(mode="json", serialize_as_any=True, exclude=unused)
        for key in ("wandb", "layer_statistics_every", "cuda_graphs", "compile"):
            identity["train"].pop(key)
        for key in INIT_KEYS:
            if getattr(self.train, key) == TrainConfig.model_fields[key].default:
                identity["train"].pop(key)
        if not self.train.batch_warmup:
            identity["train"].pop("batch_warmup")
        identity["parallel"].pop("cpu_offload_layers")
        if not self.parallel.tp_comm_overlap:
            identity["parallel"].pop("tp_comm_overlap")
        identity["optimizer"] = self.optimizer.identity()
        identity["schedule"] = self.schedule.identity()
        identity["data"].pop("loader")
        if not self.data.isolates:
            identity["data"].pop("documents")
        if not self.data.stages:
            identity["data"].pop("stages")
        identity["precision"].pop("change_on_resume")
        if self.precision.format != "fp8":
            identity["precision"] = {"format": self.precision.format, "matmul": self.precision.matmul}
        if self.precision.matmul == "float32":
            identity["precision"].pop("matmul")
        backend = self.model.backend
        identity["model"] = self.model.identity()
        identity["model"]["backend"] = {"auto": "megatron", "megatron": "megatron-core"}.get(backend, backend)
        return identity

    def with_absolute_paths(self) -> RunConfig:
        """Return the same run with absolute paths of its data and of the weights that it begins with."""
        init_from = os.path.abspath(self.train.init_from) if self.train.init_from else None
        train = self.train.model_copy(update={"init_from": init_from})
        return self.model_copy(update={"data": self.data.with_absolute_paths(), "train": train})

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of a step after those of train.batch_warmup."""
        return self.train.global_batch_size * self.data.seq_len

    def tokens(self, first: int, stop: int) -> int:
        """Return the tokens of the steps from `first` (from 0) to `stop` - 1."""
        sizes = self.train.batch_sizes
        return (sizes.samples(stop) - sizes.samples(first)) * self.data.seq_len


def multiples(value: int, of: int) -> str:
    """Return the nearest multiples as text for an error message."""
    below = value // of * of
    return f"nearest: {below} or {below + of}" if below else f"nearest: {of}"


def _shorter(steps: int, schedule: ScheduleConfig) -> str:
    """Return one override that fits warm-up and decay into half of the steps, in proportion."""
    whole = max(1, schedule.warmup_steps + schedule.decay_steps)
    warmup, decay = schedule.warmup_steps * steps // (2 * whole), schedule.decay_steps * steps // (2 * whole)
    scaled = {"type": schedule.type, "warmup_steps": warmup}
    if schedule.type == "wsd":
        scaled["decay_steps"] = max(1, decay)
    scaled |= schedule.model_dump(include={"min_lr_ratio"} & schedule.model_fields_set)
    return f"'schedule={{{', '.join(f'{key}: {value}' for key, value in scaled.items())}}}'"
