"""Two processes that save models with megatron-core, convert what they saved, and load what came of it.

For every case it leaves CASE/{tp1,pp2,tp2}, saved in those layouts, CASE/run, imported from
tp1, CASE/exported, and logits.pt: those of the model in tp1, and of what was loaded from `exported` in tp1 and tp2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from tests.convert.megatron import models, stand_ins
from tests.convert.megatron.cases import CASES, SEQ_LEN, VOCAB, Case, arguments


def main(folder: Path) -> None:
    address, rank = os.environ["HYBRIDTRON_RENDEZVOUS"], int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logits: dict[str, dict[str, Tensor]] = {name: {} for name in CASES}
    with cuda_calls_on_cpu():
        stand_ins.install()
        with layout("tp1", expert_model_parallel_size=2):
            for name, case in CASES.items():
                model = randomized(models.build(case))
                logits[name]["tp1"] = logits_of(model)
                save(model, folder / name / "tp1", case)
        with layout("pp2", pipeline_model_parallel_size=2):
            for name, case in CASES.items():
                save(load(case, folder / name / "tp1"), folder / name / "pp2", case)
    if dist.get_rank() == 0:
        convert(folder)
    dist.barrier()
    with cuda_calls_on_cpu():
        with layout("tp2", tensor_model_parallel_size=2):
            for name, case in CASES.items():
                model = load(case, folder / name / "exported" / "release", {})
                logits[name]["exported in tp2"] = logits_of(model)
                save(model, folder / name / "tp2", case)
        with layout("tp1"):
            for name, case in CASES.items():
                exported = folder / name / "exported" / "release"
                logits[name]["exported in tp1"] = logits_of(load(case, exported, {}))
                padded = replace(case, model={**case.model, "vocab_size": VOCAB + 16})
                logits[name]["exported, padded"] = logits_of(load(padded, exported, {}))
    if dist.get_rank() == 0:
        torch.save(logits, folder / "logits.pt")
    dist.destroy_process_group()


def convert(folder: Path) -> None:
    from hybridtron.convert.megatron.from_megatron import from_megatron
    from hybridtron.convert.megatron.to_megatron import to_megatron

    for name in CASES:
        from_megatron(folder / name / "tp1", folder / name / "run")
        to_megatron(folder / name / "run", folder / name / "exported", spec="local")


@contextmanager
def layout(name: str, **sizes: int) -> Iterator[None]:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(**sizes)
    models.LAYOUT.clear()
    models.LAYOUT.update(sizes)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    yield
    parallel_state.destroy_model_parallel()


def randomized(model: nn.Module) -> nn.Module:
    """A model whose norms, biases and balance differ from their initial values, alike in both processes."""
    generator = torch.Generator().manual_seed(2)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data += 0.2 * torch.randn(tensor.shape, generator=generator)
    return model


def save(model: nn.Module, folder: Path, case: Case) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.transformer.enums import AttnBackend

    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    values = argparse.Namespace(**arguments(case), params_dtype=torch.float32, attention_backend=AttnBackend.auto)
    state = {"model": model.sharded_state_dict(metadata=metadata(case.metadata)), "args": values, "iteration": 7}
    dist_checkpointing.save(state, str(folder))


def load(case: Case, folder: Path, kind: dict[str, Any] | None = None) -> nn.Module:
    from megatron.core import dist_checkpointing

    model = models.build(case)
    kind = case.metadata if kind is None else kind
    state = dist_checkpointing.load({"model": model.sharded_state_dict(metadata=metadata(kind))}, str(folder))
    model.load_state_dict(state["model"])
    return model


def metadata(kind: dict[str, Any]) -> dict[str, Any]:
    from megatron.core import parallel_state

    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True), **kind}


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    """Logits [b, s, vocabulary] of random tokens."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    tokens = torch.randint(VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(SEQ_LEN).expand(2, -1)
    future = torch.triu(torch.ones(SEQ_LEN, SEQ_LEN), 1).bool()[None, None]
    return gather_from_tensor_model_parallel_region(model.eval()(tokens, positions, future))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
