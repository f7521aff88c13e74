"""A checkpoint of megatron-core's GPTModel or MambaModel as a run folder of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridtron.config.load import build
from hybridtron.convert.architectures.parts import stored_shapes
from hybridtron.convert.formats.checkpoint import CheckpointSink
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.mapping import Shapes, check_complete, disassemble
from hybridtron.convert.megatron.arguments import read_arguments
from hybridtron.convert.megatron.from_arguments import model_section
from hybridtron.convert.megatron.new_run import new_run
from hybridtron.convert.megatron.source import MegatronSource, iteration_folder
from hybridtron.convert.megatron.table import CLASSES, Naming, Placed, is_gpt, naming_of, table
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.safe_index import shape_text

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def from_megatron(
    folder: Path, out: Path, model: Mapping[str, Any] | None = None, vocab_size: int | None = None
) -> None:
    """Write the run folder `out` with the model of a torch_dist checkpoint.

    Args:
        folder: the checkpoint, or a folder of checkpoints with Megatron-LM's tracker file.
        out: to make.
        model: the `model` section of our config; by default that which Megatron-LM's arguments in common.pt say.
        vocab_size: number of tokens; further rows of embedding and output layer, Megatron's padding, are dropped.

    Raises:
        UserError: where the checkpoint is none or is damaged, holds a model that ours cannot be, or a tensor is left
            over, missing or of another shape.
        OSError: where the system cannot read or write.
    """
    folder = iteration_folder(folder)
    source = MegatronSource(folder)
    config = model_config(source, model, vocab_size)
    naming = naming_of(source.tensors, str(folder))
    placed = table(config, naming, source.tensors)
    shapes = stored_shapes(config)
    _check(source, config, naming, placed, shapes, vocab_size)
    tensors = {
        part: TensorInfo(shapes[part], source.tensors[each.entry.name].dtype)
        for each in placed
        for part in each.entry.parts
    }
    ordered = {part: tensors[part] for part in shapes}
    with new_run(out, config, ordered) as sink:
        _copy(source, sink, placed, shapes)


def _copy(source: MegatronSource, sink: CheckpointSink, placed: list[Placed], shapes: Shapes) -> None:
    for each in placed:
        entry = each.entry
        values = source.read(entry.name, *each.box(shapes))
        boxes = disassemble(entry, values if each.layer is None else values[0], shapes)
        for part, values in zip(entry.parts, boxes, strict=True):
            sink.write(part, values, entry.box(shapes[part])[0])


def model_config(source: MegatronSource, model: Mapping[str, Any] | None, vocab_size: int | None) -> ModelConfig:
    """Return the model of a checkpoint: as given, or by its arguments."""
    rows = source.tensors[VOCABULARY[0]].shape[0] if VOCABULARY[0] in source.tensors else 0
    size = rows if vocab_size is None else vocab_size
    if model is not None:
        return build({**model, "vocab_size": size}, ModelConfig)
    file = source.folder / "common.pt"
    arguments = read_arguments(file) if file.exists() else None
    if arguments is None:
        raise UserError(f"{file}: has no arguments of Megatron-LM: expected config, with the model's section")
    return build(model_section(arguments, str(file), size), ModelConfig)


def _check(
    source: MegatronSource,
    config: ModelConfig,
    naming: Naming,
    placed: list[Placed],
    shapes: Shapes,
    vocab_size: int | None,
) -> None:
    """Raise UserError for the first tensor that is left over, missing, or of another shape than the model's."""
    folder, found = source.folder, source.tensors
    if naming.kind == "gpt" and not is_gpt([config.blocks[name].type for name in config.layer_names]):
        raise UserError(f"{folder}: holds a GPTModel: expected a pattern of attention and mlp, swiglu or moe in turn")
    biases = [key for key in found if key.endswith(("norm.bias", "norm_bias"))]
    if biases:
        raise UserError(f"{folder}: {biases[0]}: is of a LayerNorm; expected RMSNorm, which all norms are here")
    expected: dict[str, tuple[int, ...]] = {}
    layers = len(config.layer_names) // 2
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
