"""A checkpoint of ours as one of megatron-core's GPTModel or MambaModel."""

from __future__ import annotations

from pathlib import Path

from hybridtron.convert.architectures.parts import stored_shapes
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.mapping import Shapes, assemble, check_complete
from hybridtron.convert.megatron.sink import MegatronSink, common_state, object_keys
from hybridtron.convert.megatron.source import RELEASE, TRACKER
from hybridtron.convert.megatron.table import CLASSES, Kind, Naming, Placed, Spec, is_gpt, kind_of, table
from hybridtron.convert.megatron.to_arguments import megatron_arguments
from hybridtron.convert.new_run import Progress
from hybridtron.errors import UserError
from hybridtron.files import replace_file
from hybridtron.model.config import ModelConfig
from hybridtron.training.run_folder.folder import read_run


def to_megatron(
    run: Path,
    out: Path,
    kind: Kind | None = None,
    spec: Spec = "transformer-engine",
    progress: Progress | None = None,
) -> None:
    """Write a torch_dist checkpoint, `out`/release, which Megatron-LM loads by `--load OUT`.

    Args:
        run: a run folder, of which the latest checkpoint is taken, or one checkpoint.
        out: folder to make.
        kind: gpt or mamba: GPTModel or MambaModel; by default GPTModel wherever it has the same layers.
        spec: whose modules megatron-core builds the model of; they differ in the name of a norm before experts.
        progress: called while tensors are written.

    Raises:
        UserError: where there is no checkpoint, it is damaged, or the class cannot express the model, with the first
            layer that does not fit.
        OSError: where the system cannot read or write.
    """
    config, checkpoint = read_run(run)
    model = config.model
    naming = naming_for(model, kind or kind_of(model), spec)
    arguments = megatron_arguments(model, naming.kind)
    source = CheckpointSource(checkpoint, config.checkpoint.verify)
    placed = table(model, naming)
    shapes = stored_shapes(model)
    check_complete([each.entry for each in placed], shapes)
    tensors = _tensors(model, placed, shapes, source)
    objects = object_keys(model, placed, naming)
    common, total = common_state(arguments, naming), sum(info.size_bytes for info in tensors.values())
    report = (lambda done: progress(done, total)) if progress else None
    with output_folder(out, total) as draft:
        with MegatronSink(draft / RELEASE, tensors, objects, common, report) as sink:
            for each in placed:
                _write(source, sink, each, shapes)
        replace_file(draft / TRACKER, RELEASE)


def naming_for(model: ModelConfig, kind: Kind, spec: Spec) -> Naming:
    """Return how megatron-core arranges such a model by default. Raises UserError where GPTModel has other layers."""
    types = [model.blocks[name].type for name in model.layer_names]
    if kind == "gpt" and not is_gpt(types):
        raise UserError(
            f"kind = 'gpt': {CLASSES['gpt']} has attention and a feed-forward layer in turn: expected 'mamba'"
        )
    feed_forward = {each == "moe" for each in types[1::2]}
    return Naming(kind, stacked=kind == "gpt" and len(feed_forward) == 1, spec=spec)


def _tensors(
    model: ModelConfig, placed: list[Placed], shapes: Shapes, source: CheckpointSource
) -> dict[str, TensorInfo]:
    tensors = {}
    for each in placed:
        shape = each.entry.shape_there(shapes)
        outer = () if each.layer is None else (len(model.layer_names) // 2,)
        tensors[each.entry.name] = TensorInfo((*outer, *shape), source.tensors[each.entry.parts[0]].dtype)
    return tensors


def _write(source: CheckpointSource, sink: MegatronSink, each: Placed, shapes: Shapes) -> None:
    entry = each.entry
    values = assemble(entry, [source.read(part, *entry.box(shapes[part])) for part in entry.parts])
    sink.write(entry.name, values if each.layer is None else values.unsqueeze(0), each.box(shapes)[0])
