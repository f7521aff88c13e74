"""One of two processes that hold the models of `tests/convert/families.py` together: logits, loss, gradients."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from hybridtron.config.load import build
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from hybridtron.model.tensors import model_tensors
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from tests.distributed.walk import gathered_gradients


def run_config(row: dict) -> RunConfig:
    batch, length = row["tokens"].shape
    keys = {
        "data": {"train": "none", "seq_len": length - 1, "tokenizer": "byte"},
        "train": {"steps": 1, "global_batch_size": batch, "micro_batch_size": batch},
        "optimizer": {"lr": 1e-3, "clip_grad": 0},
        "parallel": {"tensor": 2, "sequence": True},
    }
    return build({"name": "families", "model": row["model"], **keys}, RunConfig)


def compute(row: dict, parallel_context: ParallelContext) -> dict:
    config, tokens = run_config(row), row["tokens"]
    engine, (chunk,) = build_engine(config, parallel_context)
    specs = model_tensors(config.model)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            parameter.copy_(specs[name].shard(row["parameters"][name], parallel_context.shards))
        logits = chunk.eval().logits(inputs)
    result = engine.train_step([(inputs, labels)], lr=0.0)
    return {"logits": logits, "loss": result.loss, "gradients": gathered_gradients(engine, parallel_context)}


def main() -> None:
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():  # before megatron-core is imported
        import hybridtron.distributed.engine  # noqa: F401

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # megatron-core's advice
    folder, found = Path(sys.argv[1]), {}
    rows = torch.load(folder / "rows.pt")
    first = next(iter(rows.values()))
    with process_groups(run_config(first).parallel, read_environment()) as parallel_context:
        for name, row in rows.items():
            found[name] = compute(row, parallel_context)
        if parallel_context.is_main:
            torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
