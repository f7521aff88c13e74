"""Write a checkpoint of any layout as another layout would, without training or process groups."""

from __future__ import annotations

import itertools
from pathlib import Path

from hybridtron.config.load import build
from hybridtron.convert.checkpoints.layout_files import files_of_layout
from hybridtron.convert.formats.checkpoint import CheckpointSource, StoredBox, divided
from hybridtron.convert.new_run import Progress, new_run
from hybridtron.convert.workers import for_each
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.model.tensors import has_experts
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_config, read_run
from hybridtron.training.run_folder.train_state import read_state
from hybridtron.training.validation.alignment import check_alignment
from hybridtron.training.validation.resolve import check_layout


def reshard(
    run: str | Path,
    out: str | Path,
    *,
    tensor: int | None = None,
    pipeline: int | None = None,
    files: int | None = None,
    optimizer: bool = True,
    verify: Verify = "full",
    progress: Progress | None = None,
) -> None:
    """Copy a checkpoint of a run into a new run folder, divided into files anew; the new run resumes bitwise.

    Args:
        run: a run folder, of which the latest checkpoint counts, or one checkpoint.
        out: run folder to make.
        tensor: tensor-parallel processes; there is a file for each process of the layout, and the new config has it.
        pipeline: pipeline stages.
        files: divide into so many files of equal size instead.
        optimizer: keep the optimizer's tensors; without them the run cannot be resumed, only used.
        verify: how much of the checkpoint is compared with its checksums first.
        progress: called while tensors are written.

    Raises:
        UserError: for a layout that does not divide the model or that training refuses, or where `out` exists or the
            disk is too small.
        OSError: where the system cannot read or write.
    """
    if files is not None and (files < 1 or tensor is not None or pipeline is not None):
        raise UserError(f"files = {files}: expected 1 or more, without tensor and pipeline")
    for name, value in (("tensor", tensor), ("pipeline", pipeline)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} = {value}: expected a whole number, 1 or more")
    out = as_path(out, "out")
    _, checkpoint = read_run(as_path(run, "run"))
    config, state = read_config(checkpoint.parent), read_state(checkpoint)
    source = CheckpointSource(checkpoint, verify, optimizer)
    if files is not None:
        contents = divided(source.tensors, files)
    else:
        layout = {"tensor": tensor or 1, "pipeline": pipeline or 1}
        contents = files_of_layout(config.model, config.data.seq_len, source.tensors, **layout)
        config = _laid_out(config, **layout)
    with new_run(
        out, config, state, source.tensors, run=checkpoint.parent, files=contents, updates=source.updates,
        fp8=source.fp8, progress=progress,
    ) as sink:  # fmt: skip

        def copy_box(place: StoredBox) -> None:
            key, box = place
            sink.write(key, source.read(key, *box), box.offsets)

        for_each(copy_box, itertools.chain.from_iterable(contents))


def _laid_out(config: RunConfig, tensor: int, pipeline: int) -> RunConfig:
    """Return the config of the layout, without keys that only another one has. Raises UserError where training refuses
    it."""
    sequence = tensor > 1 and (config.parallel.sequence or has_experts(config.model))
    changes = {"tensor": tensor, "pipeline": pipeline, "sequence": sequence}
    changes["virtual_pipeline"] = 1  # a file holds one run of layers
    changes["tp_comm_overlap"] = tensor > 1 and config.parallel.tp_comm_overlap
    graphs = config.train.cuda_graphs and tensor == pipeline == 1
    fields = config.model_dump(mode="json", serialize_as_any=True)
    sections = {"parallel": {**fields["parallel"], **changes}, "train": {**fields["train"], "cuda_graphs": graphs}}
    new = build({**fields, **sections}, RunConfig)
    check_layout(new)
    check_alignment(new)
    return new
