"""A new run folder with one checkpoint."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridtron.config.load import build, dump
from hybridtron.convert.formats.checkpoint import CheckpointSink, StoredBox
from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.tokenizer import GENERATION
from hybridtron.data.tokenizers.hugging_face import CONFIG_NAME, FILE_NAME
from hybridtron.files import replace_file
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content

Progress = Callable[[int, int], None]
"""Called with the bytes of tensors written so far, and those of all."""

KEPT = (FILE_NAME, CONFIG_NAME, GENERATION, "environment.json")  # of the run that it is made of


def imported_config(out: Path, model: Mapping[str, Any], seq_len: int) -> RunConfig:
    """Return the config of an imported run, which has no tokens to train on; train and optimizer are placeholders."""
    sections = {
        "name": _run_name(out),
        "model": model,
        "data": {"seq_len": seq_len},
        "train": {"steps": 1, "global_batch_size": 1},
        "optimizer": {"lr": 1e-4},
    }
    return build(sections, RunConfig)


def _run_name(out: Path) -> str:
    """Return a name for the run: the folder's, with a - in place of what names of runs do not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.name).lstrip("._-") or "imported"


def with_total(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Return a report of the bytes written so far that goes on to `progress` with those of all, if there is one."""
    return (lambda done: progress(done, total)) if progress else None


@contextlib.contextmanager
def new_run(
    folder: Path,
    config: RunConfig,
    state: TrainState,
    tensors: Mapping[str, TensorInfo],
    *,
    run: Path | None = None,
    small_files: Mapping[str, bytes] | None = None,
    files: Sequence[Sequence[StoredBox]] | None = None,
    updates: int = 0,
    fp8: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Iterator[CheckpointSink]:
    """Make a run folder whose one checkpoint the block writes; the folder appears when the block ends.

    Args:
        folder: to make.
        config: of the new run; its `folder` is replaced.
        state: where the new run is.
        tensors: of the checkpoint, see `CheckpointSink`.
        run: folder of the run that it is made of, if any, whose tokenizer and environment.json are kept.
        small_files: content of further files of the run folder, by name.
        files: what each file of the checkpoint holds, see `CheckpointSink`.
        updates: number of updates that the optimizer has made.
        fp8: state of FP8 linears.
        progress: called while tensors are written.

    Raises:
        UserError: where the folder exists or the disk is too small.
        OSError: where the system cannot write it.
    """
    total = sum(info.size_bytes for info in tensors.values())
    name = RunFolder(folder).checkpoint(state.step).name
    extra = {STATE_NAME: state_content(state)}
    with output_folder(folder, total) as draft:
        with CheckpointSink(draft / name, tensors, extra, files, updates, with_total(progress, total), fp8) as sink:
            yield sink
        for kept in KEPT:
            if run is not None and (run / kept).is_file():
                shutil.copyfile(run / kept, draft / kept)
        for other, content in (small_files or {}).items():
            replace_file(draft / other, content)
        absolute = config.model_copy(update={"folder": str(folder.absolute())}).with_absolute_paths()
        replace_file(draft / "config.yaml", dump(absolute))
        replace_file(draft / "latest", name + "\n")
