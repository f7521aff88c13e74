"""From a run folder or checkpoint of ours to a Hugging Face folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hybridtron.config.nearest import one_of
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.architectures.hybridtron import HYBRIDTRON
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.safetensors import SHARD_BYTES, SafetensorsSink, SafetensorsSource
from hybridtron.convert.formats.source import Source, TensorInfo, dtype_name
from hybridtron.convert.importing import CONFIG
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.mapping.table import Table
from hybridtron.convert.new_run import Progress, new_run, with_total
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
from hybridtron.convert.tokenizer import GENERATION, IDS, their_files
from hybridtron.convert.vocabulary import ResizedVocabulary, check_vocabulary_size, with_vocabulary
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.initial_weights import VOCABULARY
from hybridtron.model.config import ModelConfig
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_run
from hybridtron.training.run_folder.train_state import TrainState


def to_hf(
    run: str | Path,
    out: str | Path,
    *,
    architecture: str | None = None,
    dtype: str | None = None,
    vocab_size: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    logits: Logits = "auto",
    check: bool = True,
    progress: Progress | None = None,
) -> Receipt:
    """Convert a run, at its latest checkpoint, or one checkpoint to a Hugging Face folder.

    Args:
        run: a run folder or a checkpoint in it.
        out: the folder to make.
        architecture: a name of `ARCHITECTURES`; by default the first that can express the model.
        dtype: float32, bfloat16 or float16, to convert to; by default every tensor keeps its number format.
        vocab_size: rows of embedding and output projection: those beyond are left out, missing ones are zeros.
        shard_bytes: of a file, at most.
        logits: whether to compare logits with transformers' model; see `from_hf`.
        check: read back what was written, compare it, and hash all files.
        progress: called with bytes done and in all.

    Raises:
        UserError: where the architecture cannot express the model, the checkpoint is damaged, `out` exists, or tokens
            are in use beyond `vocab_size`.
    """
    out = as_path(out, "out")
    check_logits_choice(logits)
    began = time.perf_counter()
    config, checkpoint = read_run(as_path(run, "run"))
    files = their_files(config, checkpoint.parent)
    generation, shapes, vocabulary = json.loads(files[GENERATION]), stored_shapes(config.model), None
    if vocab_size is not None:
        rows, tokenizer = config.model.vocab_size, load_tokenizer(config.data.tokenizer)
        check_vocabulary_size(vocab_size, rows, tokenizer, generation)
        vocabulary, config = {"read": rows, "written": vocab_size}, with_vocabulary(config, vocab_size)
    notes = [_ONE_DOCUMENT] if config.data.isolates else []
    if config.model.mtp and architecture not in (None, HYBRIDTRON.name):
        config = config.model_copy(update={"model": config.model.model_copy(update={"mtp": None})})
        notes.append(_WITHOUT_MTP)
    chosen, settings = choose(config.model, architecture)
    table = Table.of(chosen, config.model)
    source: Source = CheckpointSource(checkpoint, config.checkpoint.verify)
    require_same_tensors(str(checkpoint), shapes, source.tensors)
    if vocab_size is not None:
        source = ResizedVocabulary(source, shapes.keys() & VOCABULARY, vocab_size, drop=VOCABULARY)
    infos = infos_there(table, source.tensors, chosen_dtype(dtype))
    files[CONFIG] = _config_json(chosen, settings, config, infos, generation)
    total = sum(info.size_bytes for info in infos.values())
    with SafetensorsSink(out, infos, files, shard_bytes, with_total(progress, total)) as sink:
        write_theirs(table, source, sink)
    theirs = SafetensorsSource(out)
    return write_receipt(
        "to-hf", table, source, theirs, source_folder=checkpoint, target_folder=out, run=checkpoint, hf=out, into=out,
        notes=notes, vocabulary=vocabulary, logits=logits, check=check,
        began=began, rounded=None if dtype is None else partial(_write_run, table, theirs, config),
    )  # fmt: skip


# Notes in the receipt.
_ONE_DOCUMENT = (
    "trained with data.documents isolate: a sequence is one document; packed ones need position_ids that restart"
)

_WITHOUT_MTP = "model.mtp is left out: logits do not depend on it, and only hybridtron's own architecture has it"


def _write_run(table: Table, theirs: Source, config: RunConfig, folder: Path) -> None:
    """Write the values of an exported folder as a run folder, in float32, which holds them exactly."""
    with new_run(folder, config, TrainState(), infos_here(table, theirs.tensors, torch.float32)) as sink:
        write_ours(table, theirs, sink)


def choose(model: ModelConfig, name: str | None) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture of a name, or the first that can express the model, and the settings of config.json.

    Raises UserError where it cannot, with the first layer that does not fit.
    """
    if name is not None:
        if name not in ARCHITECTURES:
            raise UserError(f"architecture = {name}: expected {one_of(name, ARCHITECTURES)}")
        return ARCHITECTURES[name], ARCHITECTURES[name].to_theirs(model)
    for architecture in ARCHITECTURES.values():
        try:
            return architecture, architecture.to_theirs(model)
        except UserError as error:
            refusal = error
    raise refusal


def _config_json(
    architecture: Architecture,
    settings: Mapping[str, Any],
    config: RunConfig,
    infos: Mapping[str, TensorInfo],
    generation: Mapping[str, Any],
) -> bytes:
    """Return config.json: what the architecture says, and what transformers wants of every model."""
    model = config.model
    content = {
        "architectures": [architecture.class_name],
        "model_type": architecture.name,
        "dtype": dtype_name(main_dtype(infos.values())),
        **{key: generation.get(key) for key in IDS},
    }
    if architecture.name == "hybridtron" and config.data.isolates:
        content["documents"] = config.data.documents
    if architecture.name == "hybridtron" or any(model.blocks[name].attends for name in model.layer_names):
        content["max_position_embeddings"] = config.data.seq_len
    return json.dumps(_strict({**content, **settings}), indent=2, allow_nan=False).encode() + b"\n"


def _strict(value: Any) -> Any:
    """Return settings with infinite numbers as transformers writes them, since JSON has none."""
    if isinstance(value, Mapping):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    return value
