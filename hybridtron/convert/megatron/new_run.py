"""A run folder with one checkpoint, at step 0, that is being written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hybridtron.config.load import build, dump
from hybridtron.convert.formats.checkpoint import CheckpointSink
from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.files import replace_file
from hybridtron.model.config import ModelConfig
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content


@contextmanager
def new_run(out: Path, model: ModelConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[CheckpointSink]:
    name = "step_00000000"
    sections = {
        "name": out.name,
        "model": model.model_dump(mode="json", serialize_as_any=True, exclude={"blocks": {"__all__": {"hidden_size"}}}),
        "data": {"seq_len": 1},
        "train": {"steps": 1, "global_batch_size": 1},
        "optimizer": {"lr": 1e-4},
    }
    config = build(sections, RunConfig)
    with output_folder(out, sum(info.size_bytes for info in tensors.values())) as draft:
        with CheckpointSink(draft / name, tensors, {STATE_NAME: state_content(TrainState())}) as sink:
            yield sink
        replace_file(draft / "config.yaml", dump(config))
        replace_file(draft / "latest", name + "\n")
