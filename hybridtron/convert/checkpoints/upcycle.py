"""Make mixtures of experts of a dense model's SwiGLU layers (Komatsuzaki et al. 2023, arXiv 2212.05055)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridtron.checkpoint_reader import stored_as
from hybridtron.config.load import build
from hybridtron.config.nearest import one_of
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.source import TensorInfo, boxes
from hybridtron.convert.new_run import Progress, new_run
from hybridtron.convert.workers import for_each
from hybridtron.distributed.checkpoint.boxes import Box, pieces
from hybridtron.distributed.checkpoint.layout import CHUNK_BYTES
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError
from hybridtron.files import as_path
from hybridtron.mixers.moe.config import MoEConfig
from hybridtron.mixers.swiglu.config import SwiGLUConfig
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initial_value
from hybridtron.model.tensors import model_tensors
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_config, read_run
from hybridtron.training.run_folder.train_state import TrainState


def upcycle(
    run: str | Path,
    out: str | Path,
    num_experts: int,
    *,
    top_k: int = 2,
    blocks: Sequence[str] | None = None,
    verify: Verify = "full",
    progress: Progress | None = None,
) -> None:
    """Write a run folder at step 0 in which every expert of a layer is a copy of the dense layer.

    The router is drawn as at the start of training. Its weights of the chosen experts add up to 1, so the logits are
    those of the dense model.

    Args:
        run: a run folder, of which the latest checkpoint counts, or one checkpoint.
        out: run folder to make; it has no optimizer state.
        num_experts: copies of each layer.
        top_k: experts that each token passes through, at least 2.
        blocks: names of the swiglu blocks that change; by default all.
        verify: how much of the checkpoint is compared with its checksums first.
        progress: called while tensors are written.

    Raises:
        UserError: where a block is no swiglu, top_k is below 2 or above num_experts, `out` exists or the disk is too
            small.
        OSError: where the system cannot read or write.
    """
    _check_experts(num_experts, top_k)
    out = as_path(out, "out")
    _, checkpoint = read_run(as_path(run, "run"))
    dense = read_config(checkpoint.parent)
    names = _swiglu_blocks(dense, blocks)
    config = _with_experts(dense, names, num_experts, top_k)
    source = CheckpointSource(checkpoint, verify)
    origin = {layer + new: layer + old for layer in _mixers_of(config.model, names) for new, old in ORIGIN.items()}
    specs, tensors = model_tensors(config.model), {}
    for name, spec in specs.items():
        for key, shape in stored_as(name, spec):
            like = source.tensors.get(origin.get(key, key))
            tensors[key] = TensorInfo(shape, like.dtype if like else dense.precision.dtype)
    with new_run(out, config, TrainState(), tensors, run=checkpoint.parent, progress=progress) as sink:

        def write_tensor(key: str) -> None:
            info = tensors[key]
            if key in source.tensors:
                for box in boxes(info):
                    sink.write(key, source.read(key, *box), box.offsets)
            elif key in origin:
                expert = Box((0,) * (len(info.shape) - 1), info.shape[1:])
                for box in pieces(expert, CHUNK_BYTES // info.dtype.itemsize):
                    values = source.read(origin[key], *box)
                    for number in range(num_experts):
                        sink.write(key, values.unsqueeze(0), (number, *box.offsets))
            else:
                sink.write(key, initial_value(config.model, key, specs[key], config.seed).to(info.dtype))

        for_each(write_tensor, tensors)


# Keys of an expert's tensors -> of those of the dense layer.
ORIGIN = {"gate_up.gate": "gate_up.weight.gate", "gate_up.up": "gate_up.weight.up", "down": "down.weight"}


def _mixers_of(model: ModelConfig, names: Sequence[str]) -> list[str]:
    """Return the beginnings of the parameter names of all mixers of these blocks."""
    layers = [f"layers.{i}." for i, name in enumerate(model.layer_names) if name in names]
    further = [f"layers.{i}." for i, name in enumerate(model.mtp_layer_names) if name in names]
    layers += [f"mtp.{module}.{layer}" for module in range(model.mtp_modules) for layer in further]
    return [f"{layer}mixer." for layer in layers]


def _check_experts(num_experts: int, top_k: int) -> None:
    """Raise UserError where an expert's weights would not add up to 1, or there are fewer than two."""
    if num_experts < 2:
        raise UserError(f"num_experts = {num_experts}: expected at least 2")
    if not 2 <= top_k <= num_experts:
        raise UserError(f"top_k = {top_k}: expected 2 to num_experts ({num_experts}), so that its weights add up to 1")


def _swiglu_blocks(config: RunConfig, blocks: Sequence[str] | None) -> list[str]:
    """Return the names of the blocks that become mixtures. Raises UserError."""
    used = set(config.model.layer_names)
    dense = [name for name, block in config.model.blocks.items() if isinstance(block, SwiGLUConfig) and name in used]
    if blocks is not None and not blocks:
        raise UserError(f"blocks = []: expected at least one of {', '.join(dense)}, or None for all")
    for name in blocks or ():
        if name not in dense:
            raise UserError(f"blocks: {name}: expected a swiglu block of the model: {one_of(name, dense)}")
    if not dense:
        raise UserError("the model has no swiglu layer; expected one to make experts of")
    return list(blocks) if blocks else dense


def _with_experts(config: RunConfig, names: Sequence[str], num_experts: int, top_k: int) -> RunConfig:
    """Return the config with mixtures of experts in place of these blocks, whose other keys they keep."""
    fields = config.model_dump(mode="json", serialize_as_any=True)
    for block in fields["model"]["blocks"].values():
        block.pop("hidden_size", None)
    for name in names:
        block = config.model.blocks[name]
        assert isinstance(block, SwiGLUConfig)
        old = fields["model"]["blocks"][name]
        kept = {key: value for key, value in old.items() if key in MoEConfig.model_fields}
        moe = {"type": "moe", "num_experts": num_experts, "top_k": top_k, "normalize_top_k": True}
        fields["model"]["blocks"][name] = {**kept, **moe, "ffn_hidden_size": block.inner_size}
    return build(fields, RunConfig)
