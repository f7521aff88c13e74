"""Check that the passes of a config can be CUDA graphs."""

from __future__ import annotations

from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig


def check_cuda_graphs(config: RunConfig) -> None:
    """Raise UserError, a line a key, where train.cuda_graphs is set beside what cannot be recorded or was not tried.

    A recording has no messages between processes: those of pipelines, and those that overlap passes, are begun by
    Python, which also takes and gives back pinned memory. Lengths of documents, and numbers of tokens that choose an
    expert, are other ones in each step.
    """
    if not config.train.cuda_graphs:
        return
    parallel, precision = config.parallel, config.precision
    beside = {
        "parallel.tensor": (parallel.tensor, 1),
        "parallel.context": (parallel.context, 1),
        "parallel.pipeline": (parallel.pipeline, 1),
        "parallel.overlap_grad_reduce": (parallel.overlap_grad_reduce, False),
        "parallel.overlap_param_gather": (parallel.overlap_param_gather, False),
        "train.compile": (config.train.compile, False),
        "parallel.cpu_offload_layers": (parallel.cpu_offload_layers, 0),
        "data.documents": (config.data.documents, "flow"),
        "precision.emulate": (precision.emulate or precision.format != "fp8", True),
    }
    lines = [
        f"{key} = {str(value).lower()}: expected {str(expected).lower()}, or train.cuda_graphs false"
        for key, (value, expected) in beside.items()
        if value != expected
    ]
    if lines:
        raise UserError("\n".join(lines))
    for name in sorted(config.model.used_blocks):
        block = config.model.blocks[name]
        if any(spec.experts for spec in block.tensors().values()):
            raise UserError(
                f"train.cuda_graphs = true: block {name} of type {block.type} has experts, whose numbers of tokens are "
                "other ones in each step; expected false"
            )
