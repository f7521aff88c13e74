"""Every primitive by the transformer_engine backend against the megatron backend, without a GPU: on the meta device.

    NVTE_FRAMEWORK=pytorch python -m tests.backends.transformer_engine.meta

Needs an environment with Transformer Engine and a CUDA build of torch, but no driver: a few questions to torch.cuda are
answered here. Compared are names, order, shapes, dtypes and megatron-core's attributes of the parameters, and keys,
shapes and places of a checkpoint's chunks, in layouts of tensor and sequence parallelism. No kernel runs.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

H100 = SimpleNamespace(major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, name="H100")
ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "get_device_capability": lambda *_: (9, 0),
    "current_device": lambda: 0,
    "device_count": lambda: 1,
    "get_device_properties": lambda *_: H100,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "tensor 2": {"tensor": 2},
    "tensor 2, sequence": {"tensor": 2, "sequence": True},
    "tensor 2, context 2": {"tensor": 2, "context": 2},
}
ATTRIBUTES = ("tensor_model_parallel", "partition_dim", "sequence_parallel", "allreduce", "decay")


def run_config(block: dict[str, Any], parallel: dict[str, Any]) -> Any:
    from hybridtron.config.load import build
    from hybridtron.training.config import RunConfig
    from hybridtron.training.validation.resolve import resolve

    model = {"hidden_size": 32, "vocab_size": 320, "blocks": {"block": block}, "pattern": "block block"}
    model["zero_centered_norms"] = True
    config = {"name": "meta", "model": model, "train": {"steps": 1, "global_batch_size": 4}, "parallel": parallel}
    config |= {"precision": {"format": "bf16"}, "optimizer": {"lr": 1e-3}}
    return resolve(build(config | {"data": {"train": "none", "seq_len": 16, "tokenizer": "byte"}}, RunConfig))


def parameters_and_chunks(config: Any, backend: str, rank: int) -> tuple[list[Any], list[Any], set[str]]:
    """What one process holds, and the classes that hold it."""
    from hybridtron.distributed.checkpoint.chunks import held_chunks
    from hybridtron.distributed.data_parallel.replicas import annotate
    from hybridtron.distributed.engine import megatron_config
    from hybridtron.distributed.process_groups.groups import make_groups, parallel_context_of
    from hybridtron.model.language_model import LanguageModel
    from hybridtron.model.tensors import model_tensors
    from hybridtron.planner.fake_process_group import fake_process_group
    from hybridtron.training.build import make_backend

    world_size = config.parallel.model_size
    with fake_process_group(rank, world_size):
        make_groups(config.parallel)
        context = parallel_context_of(config.parallel, rank, world_size, torch.device("meta"))
        megatron = megatron_config(config.model.hidden_size, config.parallel, config.precision)
        with torch.device("meta"), patch("torch.cuda.current_device", lambda: torch.device("meta")):
            model = LanguageModel(config.model, make_backend(backend, megatron, context, config.model.norm_eps))
        specs = model_tensors(config.model)
        annotate(model, specs, config.parallel.sequence, None)
        engine: Any = SimpleNamespace(
            chunks=[model],
            specs=specs,
            parallel_context=context,
            optimizer=SimpleNamespace(chained_optimizers=[]),
            average=None,
        )
        chunks = [(chunk.key, chunk.shape, chunk.offsets, tuple(chunk.data.shape)) for chunk in held_chunks(engine)]
        parameters = [
            (name, tuple(p.shape), p.dtype, p.requires_grad, [getattr(p, key) for key in ATTRIBUTES])
            for name, p in model.named_parameters()
        ]
        holders = {type(module).__module__ for module in model.modules() if list(module.parameters(recurse=False))}
    return parameters, chunks, holders


def main() -> int:
    from hybridtron.backends.transformer_engine.installation import transformer_engine_problem
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
    from hybridtron.errors import UserError

    if problem := transformer_engine_problem():
        print(problem)
        return 2
    from tests.distributed.models import BLOCKS

    differing = compared = refused = 0
    with cuda_calls_on_cpu():
        for block in BLOCKS:
            for layout, parallel in LAYOUTS.items():
                try:
                    config = run_config(BLOCKS[block], parallel)
                except UserError:  # a layout that the block does not support
                    refused += 1
                    continue
                for rank in range(config.parallel.model_size):
                    theirs = parameters_and_chunks(config, "megatron", rank)
                    ours = parameters_and_chunks(config, "transformer_engine", rank)
                    compared += 1
                    taken = any(module.startswith("hybridtron.backends.transformer_engine.") for module in ours[2])
                    if ours[:2] != theirs[:2] or not taken:
                        differing += 1
                        print(f"{block}, {layout}, rank {rank}: differs\n  {theirs}\n  {ours}")
    print(f"{compared} models compared in {len(BLOCKS)} blocks, {refused} refused layouts, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    with patch.multiple(torch.cuda, **ANSWERS):
        sys.exit(main())
