"""A checkpoint of megatron-core's GPTModel or MambaModel as a run folder of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridtron.config.compose import compose
from hybridtron.config.load import build
from hybridtron.convert.architectures.parts import stored_shapes
from hybridtron.convert.formats.checkpoint import CheckpointSink
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.mapping import Shapes, check_complete, disassemble
from hybridtron.convert.megatron.arguments import read_arguments
from hybridtron.convert.megatron.from_arguments import model_section
from hybridtron.convert.megatron.source import MegatronSource, iteration_folder
from hybridtron.convert.megatron.table import CLASSES, Naming, Placed, is_gpt, naming_of, table
from hybridtron.convert.new_run import Progress, new_run
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.safe_index import shape_text
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.train_state import TrainState

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def from_megatron(
    folder: Path,
    out: Path,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the run folder `out` with the model of a torch_dist checkpoint.

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
    naming = naming_of(source.tensors, str(folder))
    placed = table(model, naming, source.tensors)
    shapes = stored_shapes(model)
    _check(source, model, naming, placed, shapes, vocab_size)
    tensors = {
        part: TensorInfo(shapes[part], source.tensors[each.entry.name].dtype)
        for each in placed
        for part in each.entry.parts
    }
    ordered = {part: tensors[part] for part in shapes}
    run = build(_run_sections(out, model), RunConfig)
    with new_run(out, run, TrainState(), ordered, progress=progress) as sink:
        _copy(source, sink, placed, shapes)


def _run_sections(out: Path, model: ModelConfig) -> dict[str, Any]:
    """Return a config that names the model; what trains it is for the user to say."""
    blocks = {"blocks": {"__all__": {"hidden_size"}}}
    return {
        "name": out.name,
        "model": model.model_dump(mode="json", serialize_as_any=True, exclude=blocks),
        "data": {"seq_len": 1024},
        "train": {"steps": 1, "global_batch_size": 1},
        "optimizer": {"lr": 1e-4},
    }


def _copy(source: MegatronSource, sink: CheckpointSink, placed: list[Placed], shapes: Shapes) -> None:
    for each in placed:
        entry = each.entry
        values = source.read(entry.name, *each.box(shapes))
        boxes = disassemble(entry, values if each.layer is None else values[0], shapes)
        for part, values in zip(entry.parts, boxes, strict=True):
            sink.write(part, values, entry.box(shapes[part])[0])


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


def _check(
    source: MegatronSource,
    model: ModelConfig,
    naming: Naming,
    placed: list[Placed],
    shapes: Shapes,
    vocab_size: int | None,
) -> None:
    """Raise UserError for the first tensor that is left over, missing, or of another shape than the model's."""
    folder, found = source.folder, source.tensors
    if naming.kind == "gpt" and not is_gpt([model.blocks[name].type for name in model.layer_names]):
        raise UserError(f"{folder}: holds a GPTModel: expected a pattern of attention and mlp, swiglu or moe in turn")
    biases = [key for key in found if key.endswith(("norm.bias", "norm_bias"))]
    if biases:
        raise UserError(f"{folder}: {biases[0]}: is of a LayerNorm; expected RMSNorm, which all norms are here")
    expected: dict[str, tuple[int, ...]] = {}
    layers = len(model.layer_names) // 2
    for each in placed:
        shape = each.entry.shape_there(shapes)
        expected[each.entry.name] = shape if each.layer is None else (layers, *shape)
    for key in [*expected, *found]:
        if key not in found:
            raise UserError(f"{folder}: {key}: is missing: expected it for a {CLASSES[naming.kind]} like the config's")
        if key not in expected:
            raise UserError(f"{folder}: {key}: is left over: the config's {CLASSES[naming.kind]} has no such tensor")
        shape, there = expected[key], found[key].shape
        if key in VOCABULARY and vocab_size is not None and there[0] >= shape[0]:
            there = (shape[0], *there[1:])
        if there != shape:
            raise UserError(
                f"{folder}: {key}: is {shape_text(there)}; expected {shape_text(shape)}, as the config says"
            )
    check_complete([each.entry for each in placed], shapes)
