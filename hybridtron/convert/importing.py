"""From a Hugging Face folder to a run folder of ours."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hybridtron.config.nearest import one_of
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.safetensors import SHARD_BYTES, SafetensorsSink, SafetensorsSource
from hybridtron.convert.formats.source import Source
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.settings import Settings
from hybridtron.convert.mapping.table import Table
from hybridtron.convert.new_run import Progress, imported_config, new_run
from hybridtron.convert.receipt import Logits, Receipt, check_logits_choice, write_receipt
from hybridtron.convert.streaming import (
    chosen_dtype,
    infos_here,
    infos_there,
    main_dtype,
    require_same_tensors,
    write_ours,
    write_theirs,
)
from hybridtron.convert.tokenizer import our_files
from hybridtron.convert.vocabulary import ResizedVocabulary, names_of_vocabulary, padded_size, with_vocabulary
from hybridtron.data.tokenizers.hugging_face import FILE_NAME
from hybridtron.errors import UserError, unreadable
from hybridtron.files import as_path, read_plain
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import TrainState

logger = logging.getLogger(__name__)

CONFIG = "config.json"
SEQ_LEN = 2048  # of a model whose config.json names no length


def from_hf(
    folder: str | Path,
    out: str | Path,
    *,
    ignore: Sequence[str] = (),
    dtype: str | None = None,
    seq_len: int | None = None,
    pad_vocab_to: int | None = None,
    logits: Logits = "auto",
    check: bool = True,
    progress: Progress | None = None,
) -> Receipt:
    """Convert a Hugging Face folder to a run folder with one checkpoint, of step 0.

    Args:
        folder: with config.json and safetensors files.
        out: the run folder to make.
        ignore: names, or patterns with * and ?, of tensors there that may be left over.
        dtype: float32 or bfloat16, to convert to; by default every tensor keeps its number format.
        seq_len: data.seq_len of the run; by default max_position_embeddings.
        pad_vocab_to: add rows of zeros to embedding and output projection, up to a multiple of this.
        logits: whether to compare logits with transformers' model, in one process and in two; "auto": of small models,
            where transformers is installed.
        check: read back what was written, compare it, and hash all files.
        progress: called with bytes done and in all.

    Raises:
        UserError: for an architecture or a setting that is not known, tensors left over or missing, damaged files, or
            an `out` that exists.
    """
    folder, out, began = as_path(folder, "folder"), as_path(out, "out"), time.perf_counter()
    check_logits_choice(logits)
    settings = read_settings(folder)
    architecture, model = understand(settings, folder / CONFIG)
    length = _seq_len(settings, seq_len)
    with naming_file(folder / CONFIG):
        config = imported_config(out, {**model, "backend": "megatron"}, length)
    source: Source = SafetensorsSource(folder)
    table = Table.of(architecture, config.model, source.tensors)
    expected = {entry.name: entry.shape_there(table.shapes) for entry in table.entries}
    ignored = require_same_tensors(str(folder), expected, source.tensors, ignore)
    vocabulary = None
    if pad_vocab_to is not None:
        rows = padded_size(config.model.vocab_size, pad_vocab_to)
        vocabulary = {"read": config.model.vocab_size, "written": rows}
        config = with_vocabulary(config, rows)
        source = ResizedVocabulary(source, names_of_vocabulary(table.entries), rows)
        table = Table.of(architecture, config.model, source.tensors)
    infos = infos_here(table, source.tensors, chosen_dtype(dtype))
    files, notes = our_files(folder, settings)
    tokenizer = str(out / FILE_NAME) if FILE_NAME in files else "byte"
    config = _completed(config, main_dtype(infos.values()), tokenizer, settings.get("documents") == "isolate")
    with new_run(out, config, TrainState(), infos, small_files=files, progress=progress) as sink:
        write_ours(table, source, sink)
    ours = CheckpointSource(RunFolder(out).checkpoint(0), "none")
    return write_receipt(
        "from-hf", table, ours, source, source_folder=folder, target_folder=out, run=out, hf=folder, into=out,
        ignored=ignored, notes=notes, vocabulary=vocabulary, logits=logits, check=check, began=began,
        rounded=None if dtype is None else partial(_write_folder, table, ours, settings, vocabulary),
    )  # fmt: skip


def _write_folder(
    table: Table, ours: Source, settings: Mapping[str, Any], vocabulary: Mapping[str, int] | None, folder: Path
) -> None:
    """Write the values of an imported run as a Hugging Face folder, in float32, which holds them exactly."""
    if vocabulary is not None:
        settings = {**settings, "vocab_size": vocabulary["written"]}
    infos, files = infos_there(table, ours.tensors, torch.float32), {CONFIG: json.dumps(settings).encode()}
    with SafetensorsSink(folder, infos, files, SHARD_BYTES, None) as sink:
        write_theirs(table, ours, sink)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder. Raises UserError where there is none, or it is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; expected one with {CONFIG} and safetensors files")
    file = folder / CONFIG
    if not file.exists():
        raise UserError(f"{folder}: has no {CONFIG}; expected a folder as save_pretrained of transformers writes it")
    try:
        values = json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error, "is no JSON") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: damaged: holds no mapping")
    return values


@contextlib.contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Name a file in a UserError of the block that does not name it."""
    try:
        yield
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None


def understand(values: Mapping[str, Any], file: Path) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture of config.json, and our `model` section. Raises UserError for what is not known."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{file}: model_type = {kind!r}: expected {one_of(kind, ARCHITECTURES)}")
    settings = Settings(values, str(file))
    model = our_model(ARCHITECTURES[kind], settings)
    settings.check_all_read()
    return ARCHITECTURES[kind], model


def our_model(architecture: Architecture, settings: Settings) -> dict[str, Any]:
    """Return our `model` section of config.json. Raises UserError for what ours cannot be."""
    try:
        return architecture.to_ours(settings)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        logger.debug("settings cannot be read", exc_info=True)
        raise UserError(f"{settings.file}: a setting has another type than {architecture.name} has: {error}") from None


def _seq_len(settings: Mapping[str, Any], wanted: int | None) -> int:
    """Return data.seq_len of the run. Raises UserError."""
    if wanted is not None and (not isinstance(wanted, int) or wanted < 1):
        raise UserError(f"seq_len = {wanted}: expected a whole number of at least 1")
    return wanted or settings.get("max_position_embeddings") or SEQ_LEN


def _completed(config: RunConfig, dtype: torch.dtype, tokenizer: str, isolate: bool) -> RunConfig:
    """Return the config with its number format, its tokenizer, and what becomes of documents."""
    precision = config.precision.model_copy(update={"format": "bf16" if dtype == torch.bfloat16 else "fp32"})
    documents = "isolate" if isolate else "flow"
    data = config.data.model_copy(update={"tokenizer": tokenizer, "documents": documents})
    return config.model_copy(update={"precision": precision, "data": data})
