"""A checkpoint of megatron-core's GPTModel or MambaModel as a run folder of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridtron.config.compose import compose
from hybridtron.config.load import build
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.source import Source
from hybridtron.convert.megatron.arguments import read_arguments
from hybridtron.convert.megatron.from_arguments import model_section
from hybridtron.convert.megatron.layers import SingleLayers
from hybridtron.convert.megatron.source import MegatronSource, iteration_folder
from hybridtron.convert.megatron.table import is_gpt, naming_of, table
from hybridtron.convert.new_run import Progress, imported_config, new_run
from hybridtron.convert.receipt import Receipt, write_receipt
from hybridtron.convert.streaming import infos_here, require_same_tensors, write_ours
from hybridtron.convert.vocabulary import ResizedVocabulary
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import TrainState

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
SEQ_LEN = 1024  # data.seq_len of the run, which a checkpoint does not say
NOTES = ("logits were not compared: that would need the training code of Megatron-LM",)


def from_megatron(
    folder: Path,
    out: Path,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Write the run folder `out` with the model of a torch_dist checkpoint; return the receipt, conversion.json.

    Args:
        folder: the checkpoint, or a folder of checkpoints with Megatron-LM's tracker file.
        out: to make.
        config: our config, as YAML or a mapping, of which the `model` section says what the model is; by default
            Megatron-LM's arguments in common.pt say it.
        vocab_size: number of tokens; further rows of embedding and output layer, Megatron's padding, are dropped.
        progress: called while tensors are written.

    Raises:
        UserError: where the checkpoint is none or is damaged, holds a model that ours cannot be, or a tensor is left
            over, missing or of another shape.
        OSError: where the system cannot read or write.
    """
    folder = iteration_folder(folder)
    source = MegatronSource(folder)
    model = _model(source, config, vocab_size)
    _refuse_layer_norm(source)
    naming = naming_of(source.tensors, str(folder))
    if naming.kind == "gpt" and not is_gpt([model.blocks[name].type for name in model.layer_names]):
        raise UserError(f"{folder}: holds a GPTModel: expected a pattern of attention and mlp, swiglu or moe in turn")
    theirs: Source = SingleLayers(source) if naming.stacked else source
    vocabulary = None
    if vocab_size is not None:
        names = [name for name in VOCABULARY if name in theirs.tensors]
        names = [name for name in names if theirs.tensors[name].shape[0] > vocab_size]
        vocabulary = {"read": theirs.tensors[names[0]].shape[0], "written": vocab_size} if names else None
        theirs = ResizedVocabulary(theirs, names, vocab_size, drop=names)
    entries = table(model, naming, theirs.tensors)
    expected = {entry.name: entry.shape_there(entries.shapes) for entry in entries.entries}
    require_same_tensors(str(folder), expected, theirs.tensors)
    section = model.model_dump(mode="json", serialize_as_any=True, exclude={"blocks": {"__all__": {"hidden_size"}}})
    run = imported_config(out, section, SEQ_LEN)
    with new_run(out, run, TrainState(), infos_here(entries, theirs.tensors), progress=progress) as sink:
        write_ours(entries, theirs, sink)
    ours = CheckpointSource(RunFolder(out).checkpoint(0), "none")
    return write_receipt(
        "from-megatron", entries, ours, theirs, source_folder=folder, target_folder=out, run=out, hf=folder, into=out,
        notes=NOTES, vocabulary=vocabulary, logits="never",
    )  # fmt: skip


def _model(
    source: MegatronSource, config: str | os.PathLike[str] | Mapping[str, Any] | None, vocab_size: int | None
) -> ModelConfig:
    """Return the model of a checkpoint, by our config or by Megatron-LM's arguments."""
    rows = source.tensors[VOCABULARY[0]].shape[0] if VOCABULARY[0] in source.tensors else 0
    size = rows if vocab_size is None else vocab_size
    file = source.folder / "common.pt"
    if config is None:
        arguments = read_arguments(file) if file.exists() else None
        if arguments is None:
            raise UserError(f"config = None: {file} has no arguments of Megatron-LM: expected a config with `model`")
        return build(model_section(arguments, str(file), size), ModelConfig)
    section = compose(config, ()).mapping.get("model")
    if not isinstance(section, Mapping):
        raise UserError(f"config = {config}: has no section `model`")
    return build({**section, "vocab_size": size}, ModelConfig)


def _refuse_layer_norm(source: Source) -> None:
    """Raise UserError for a model of LayerNorm, whose norms have biases."""
    for key in source.tensors:
        if key.endswith(("norm.bias", "norm_bias")):
            raise UserError(f"{key}: is of a LayerNorm; expected RMSNorm, which all norms are here")
