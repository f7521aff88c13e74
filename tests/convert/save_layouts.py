"""One of the processes that save the same tiny models in every layout; rank r takes part in those of more than r.

    python -m tests.convert.save_layouts FOLDER

The first layout of a model, one process, trains a step and saves; every other loads that checkpoint in its own pieces
and saves it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from hybridtron.config.load import build
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve

BLOCKS: dict[str, dict[str, Any]] = {
    "mamba": {"type": "mamba2", "head_dim": 8, "state_dim": 8, "num_groups": 8, "chunk_size": 8},
    "attn": {"type": "attention", "num_heads": 8, "num_kv_heads": 8, "head_dim": 4, "rotary_fraction": 0.0},
    "mlp": {"type": "mlp", "ffn_hidden_size": 64, "activation": "relu2"},
    "moe": {"type": "moe", "num_experts": 8, "ffn_hidden_size": 16, "shared_ffn_hidden_size": 16, "balance": "bias"},
}
MODELS = {"dense": "mamba mlp attn mlp mamba mlp attn mlp", "sparse": "mamba moe attn moe"}
LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {
        "one": {},
        "tp2": {"tensor": 2},
        "tp4": {"tensor": 4},
        "tp8": {"tensor": 8},
        "pp2": {"pipeline": 2},
        "pp4": {"pipeline": 4},
        "tp2 sp pp4": {"tensor": 2, "sequence": True, "pipeline": 4},
        "tp4 pp2": {"tensor": 4, "pipeline": 2},
        "tp2 dp2 do": {"tensor": 2, "data": 2, "distributed_optimizer": True},
    },
    "sparse": {
        "one": {},
        "dp2 ep2": {"data": 2, "expert": 2},
        "tp2 sp pp2 dp2 ep4": {"tensor": 2, "sequence": True, "pipeline": 2, "data": 2, "expert": 4},
        "dp8 ep8 do": {"data": 8, "expert": 8, "distributed_optimizer": True},
        "tp2 sp ep2 etp2": {"tensor": 2, "sequence": True, "data": 2, "expert": 2, "expert_tensor": 2},
    },
}
PROCESSES = 8


def config_of(model: str, layout: str) -> RunConfig:
    sections = {"hidden_size": 32, "vocab_size": 320, "blocks": BLOCKS, "pattern": MODELS[model]}
    train = {"steps": 2, "global_batch_size": 8, "micro_batch_size": 1}
    data = {"train": "none", "seq_len": 16, "tokenizer": "byte"}
    config = {"name": model, "seed": 3, "model": sections, "train": train, "data": data, "optimizer": {"lr": 1e-2}}
    parallel = LAYOUTS[model][layout]
    return resolve(build({**config, "parallel": parallel, "precision": {"format": "bf16"}}, RunConfig))


def world_size(config: RunConfig) -> int:
    return config.parallel.model_size * (config.parallel.data or 1)


def save(folder: Path, model: str, layout: str, parallel_context: Any) -> None:
    """Save the model in the layout that these processes form."""
    from hybridtron.distributed import checkpoint

    engine, _ = build_engine(config_of(model, layout), parallel_context)
    if layout == "one":
        tokens = torch.randint(300, (8, 17), generator=torch.Generator().manual_seed(0))
        engine.train_step([(row[:, :-1], row[:, 1:]) for row in tokens.split(1)], lr=1e-2)
    else:
        checkpoint.load(folder / model / "one", engine)
    target = folder / model / layout
    if parallel_context.is_main:
        target.mkdir(parents=True)
    engine.agree(True)
    checkpoint.save(target, engine)


def main() -> None:
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():  # before megatron-core is imported
        import hybridtron.distributed.engine  # noqa: F401

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # megatron-core's advice
    folder, here = Path(sys.argv[1]), read_environment()
    for model, layouts in LAYOUTS.items():
        for layout in layouts:
            config = config_of(model, layout)
            processes = world_size(config)
            if here.rank >= processes:
                continue
            method = f"file://{folder}/{model}-{layout.replace(' ', '-')}" if processes > 1 else None
            environment = Environment(here.rank, processes, here.rank, method, "walk")
            with process_groups(config.parallel, environment) as parallel_context:
                save(folder, model, layout, parallel_context)


if __name__ == "__main__":
    main()
