"""Which boxes of a checkpoint each process of a layout holds, for files as that layout would write them."""

from __future__ import annotations

from collections.abc import Mapping

from hybridtron.checkpoint_keys import KINDS, optimizer_key
from hybridtron.checkpoint_reader import stored_as
from hybridtron.convert.formats.checkpoint import StoredBox
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.distributed.checkpoint.boxes import Box, pieces
from hybridtron.distributed.checkpoint.layout import CHUNK_BYTES
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.stage import cut, stage_tensors
from hybridtron.model.tensors import model_tensors
from hybridtron.tensors import TensorSpec, indivisible

PREFIXES = ("", *(optimizer_key(kind) for kind in KINDS))  # how keys of a parameter begin


def files_of_layout(
    model: ModelConfig, seq_len: int, tensors: Mapping[str, TensorInfo], tensor: int = 1, pipeline: int = 1
) -> list[list[StoredBox]]:
    """Return what each of tensor x pipeline processes holds of a checkpoint's tensors, each element once.

    Raises UserError where the layout does not divide the model, or a tensor is none of the model's.
    """
    specs = model_tensors(model)
    for part in indivisible(specs, tensor):
        raise UserError(f"tensor = {tensor}: does not divide {part.key or part.name} = {part.units}")
    if pipeline > len(model.layer_names):
        raise UserError(f"pipeline = {pipeline}: expected at most {len(model.layer_names)}, the number of layers")
    cuts = model.parsed_pattern.cuts
    if pipeline > 1 and cuts and len(cuts) + 1 != pipeline:
        raise UserError(f"pipeline = {pipeline}: expected {len(cuts) + 1}, as the pattern {model.pattern!r} is cut")
    contents: list[list[StoredBox]] = [[] for _ in range(tensor * pipeline)]
    left = dict(tensors)
    for stage in cut(model, pipeline, seq_len):
        for name, spec in stage_tensors(model, specs, stage).items():
            for key, shape in stored_as(name, spec):
                for prefix in PREFIXES:
                    if info := left.pop(prefix + key, None):  # a tied embedding is the first stage's
                        for rank, box in enumerate(_shares(spec, shape, tensor)):
                            most = CHUNK_BYTES // info.dtype.itemsize
                            held = contents[stage.index * tensor + rank]
                            held += [(prefix + key, piece) for piece in pieces(box, most)]
    for key in left:
        raise UserError(f"tensor {key} is none of the model's")
    return contents


def _shares(spec: TensorSpec, shape: tuple[int, ...], ways: int) -> list[Box]:
    """Return the boxes that tensor-parallel processes hold of a stored part; one box where it is not cut."""
    axis = 0 if spec.experts else spec.axis
    if (not spec.parts and not spec.experts) or shape[axis] % ways:
        ways = 1
    sizes = (*shape[:axis], shape[axis] // ways, *shape[axis + 1 :])
    starts = ((*(0,) * axis, rank * sizes[axis], *(0,) * (len(shape) - axis - 1)) for rank in range(ways))
    return [Box(start, sizes) for start in starts]
