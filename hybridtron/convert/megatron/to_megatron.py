"""A checkpoint of ours as one of megatron-core's GPTModel or MambaModel."""

from __future__ import annotations

from pathlib import Path

from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.convert.megatron.from_megatron import NOTES
from hybridtron.convert.megatron.layers import SingleLayers
from hybridtron.convert.megatron.sink import MegatronSink, common_state, object_keys
from hybridtron.convert.megatron.source import RELEASE, TRACKER, MegatronSource
from hybridtron.convert.megatron.table import CLASSES, Kind, Naming, Spec, is_gpt, kind_of, table
from hybridtron.convert.megatron.to_arguments import megatron_arguments
from hybridtron.convert.new_run import Progress, with_total
from hybridtron.convert.receipt import Receipt, write_receipt
from hybridtron.convert.streaming import infos_there, require_same_tensors, write_theirs
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
) -> Receipt:
    """Write a torch_dist checkpoint, `out`/release, which Megatron-LM loads by `--load OUT`; return the receipt.

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
    entries = table(model, naming)
    require_same_tensors(str(checkpoint), entries.shapes, source.tensors)
    tensors = infos_there(entries, source.tensors)
    objects, common = object_keys(model, entries.entries, naming), common_state(arguments, naming)
    total = sum(info.size_bytes for info in tensors.values())
    with output_folder(out, total) as draft:
        with MegatronSink(
            draft / RELEASE, tensors, naming.stacked, objects, common, with_total(progress, total)
        ) as sink:
            write_theirs(entries, source, sink)
        replace_file(draft / TRACKER, RELEASE)
    written = MegatronSource(out / RELEASE)
    return write_receipt(
        "to-megatron", entries, source, SingleLayers(written) if naming.stacked else written,
        source_folder=checkpoint, target_folder=out / RELEASE, run=checkpoint, hf=out, into=out,
        notes=NOTES, logits="never",
    )  # fmt: skip


def naming_for(model: ModelConfig, kind: Kind, spec: Spec) -> Naming:
    """Return how megatron-core arranges such a model by default. Raises UserError where GPTModel has other layers."""
    types = [model.blocks[name].type for name in model.layer_names]
    if kind == "gpt" and not is_gpt(types):
        raise UserError(
            f"kind = 'gpt': {CLASSES['gpt']} has attention and a feed-forward layer in turn: expected 'mamba'"
        )
    feed_forward = {each == "moe" for each in types[1::2]}
    return Naming(kind, stacked=kind == "gpt" and len(feed_forward) == 1, spec=spec)
