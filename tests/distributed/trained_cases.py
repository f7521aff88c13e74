"""One of the processes that train drawn cases; rank r takes part in layouts of more than r processes.

    python -m tests.distributed.trained_cases FOLDER

FOLDER/cases.json says what to train. Of every case one process trains all steps, and then the layouts train them one
after another, each from the checkpoint of the one before. The main process writes what is compared.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridtron.backends.megatron import tensor_overlap
from hybridtron.checkpoint_reader import load_parameters
from hybridtron.data.loaders.batches import MicroBatch, global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from hybridtron.model.compiling import compile_layers
from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.tensors import model_tensors
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.single_process import Model
from tests.distributed.drawn_cases import Case, Leg, Rounding, from_json
from tests.distributed.float64 import in_float64
from tests.distributed.tape import tapes_for_graphs
from tests.distributed.walk import distance, gathered_gradients
from tests.model.late_host import offloaded

TOKENS = 257  # of the tokenizer
LEAST_ROWS, BUCKET_ELEMENTS = 1, 5000  # several pieces of few tokens, several buckets in models this small


class Text:
    """Random tokens whose first half the second half repeats, in documents of random lengths, among them of 1 token."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len

    def samples(self, indices: np.ndarray) -> np.ndarray:
        half = (self.seq_len + 2) // 2
        rows = [np.random.default_rng(index).integers(TOKENS, size=half) for index in indices]
        return np.stack([np.concatenate([row, row])[: self.seq_len + 1] for row in rows])

    def documents(self, indices: np.ndarray) -> list[np.ndarray]:
        pieces = []
        for index in indices:
            numbers = np.random.default_rng(1_000_000 + index)
            cuts = np.flatnonzero(numbers.random(self.seq_len) < (index % 4) / 8) + 1
            pieces.append(np.diff([0, *cuts, self.seq_len + 1]))
        return pieces


def batches(config: RunConfig, step: int, context: ParallelContext) -> list[MicroBatch]:
    """Return this process's share of the batch of a step."""
    train = config.train
    sampler = BatchSampler(train.batch_sizes, train.micro_batch_size, context.data_rank, context.data_size)
    text: Any = Text(config.data.seq_len)
    return list(global_batch(text, step, sampler, config.data.isolates))


@torch.no_grad()
def moved(engine: Any, unit: float, seed: int) -> None:
    """Multiply every weight by 1 + unit n, n normal."""
    generator = torch.Generator().manual_seed(seed)
    for chunk in engine.chunks:
        for parameter in chunk.parameters():
            factor = 1 + unit * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter.double() * factor)
    engine.optimizer.reload_model_params()  # the fp32 copies of narrower ones


@torch.no_grad()
def answers(checkpoint: Path, config: RunConfig) -> dict[str, Any]:
    """Evaluate and generate with a checkpoint, as verbs do that take one process and no process groups."""
    model = Model(config)
    model.load_state_dict(load_parameters(checkpoint, model_tensors(config.model)))
    model.eval()
    text = torch.from_numpy(Text(config.data.seq_len).samples(np.arange(900, 904)))
    tokens = text[:2, :10]
    state = BatchState(model, 2, room=10)
    logits = [state.advance(tokens[:, :7], [7, 4])]
    logits += [state.advance(tokens[:, t : t + 1], [1, 1]) for t in range(7, 10)]
    return {"evaluated": float(model.loss(text)), "logits": torch.cat(logits)[:, :TOKENS:4].double().tolist()}


def train(
    config: RunConfig,
    leg: Leg,
    context: ParallelContext,
    steps: range,
    compared: set[int],
    folder: Path,
    before: Path | None,
    rounding: Rounding | None,
) -> dict[str, Any]:
    """Train some steps; leave a checkpoint in `folder`, and return what is compared, gradients of steps `compared`."""
    from hybridtron.distributed import checkpoint

    engine, chunks = build_engine(config, context)
    if leg.compiled:
        torch._dynamo.reset()
        compile_layers(chunks, context.device, "aot_eager")
    if count := config.parallel.cpu_offload_layers:  # of no effect on a CPU
        for chunk in engine.chunks:
            offloaded(chunk, count)
    if before:
        checkpoint.load(before, engine)
    if rounding:
        moved(engine, *rounding)
    found: dict[str, Any] = {"losses": [], "grad_norms": [], "mtp_losses": [], "expert_loads": [], "gradients": {}}
    for step in steps:
        result = engine.train_step(batches(config, step, context), config.optimizer.lr)
        found["losses"].append(result.loss)
        found["grad_norms"].append(result.grad_norm)
        found["mtp_losses"].append(result.mtp_loss)
        found["expert_loads"].append(result.expert_load)
        if step in compared and not config.parallel.distributed_optimizer:
            found["gradients"][step] = gathered_gradients(engine, context)
    if engine.average:
        with engine.average.in_place_of_weights():
            found["averaged"] = evaluated(engine, config, context)
    found["evaluated"] = evaluated(engine, config, context)
    if context.is_main:
        folder.mkdir()
    engine.agree(True)
    checkpoint.save(folder, engine)
    return found


def evaluated(engine: Any, config: RunConfig, context: ParallelContext) -> float:
    """Return the loss of a batch that is not trained on."""
    several = batches(config, 100, context)
    return float(engine.evaluate(several, len(several) * config.train.micro_batch_size))


def try_case(case: Case, name: str, folder: Path, here: Environment, rounding: Rounding | None) -> None:
    """Train a case in one process, and without `rounding` in its layouts; write what was found."""
    alone = folder / f"{name} alone"
    whole, first = range(case.ends[-1]), {steps.start for steps in case.steps}
    legs = [] if rounding else zip(case.legs, case.steps, strict=True)
    for number, (leg, steps) in enumerate([(Leg(), whole), *legs]):
        config = case.config(leg)
        size = leg.data * config.parallel.model_size
        place = folder / f"{name} {number - 1}" if number else alone
        if rounding:
            place = folder / f"{name} moved {rounding[1]}"
        if here.rank >= size:
            continue
        meeting = f"file://{place}.meeting" if size > 1 else None
        environment = Environment(here.rank, size, here.rank, meeting, "drawn")
        tapes = tapes_for_graphs() if leg.recorded else contextlib.nullcontext()
        with tapes, process_groups(config.parallel, environment) as context:
            before = folder / f"{name} {number - 2}" if number > 1 else None
            found = train(config, leg, context, steps, first, place, before, rounding)
            if context.is_main:
                write(found, alone, place, case.config(Leg()) if steps.stop == whole.stop else None)
        del context  # a thread for each of its groups wakes every 10 ms, also while others train


def write(found: dict[str, Any], alone: Path, place: Path, whole: RunConfig | None) -> None:
    """Write what was found, with the distances of gradients from those of one process and, after the last step, with
    those of all weights."""
    gradients = found.pop("gradients")
    if place == alone:
        torch.save(gradients, f"{alone}.gradients")
    else:
        expected = torch.load(f"{alone}.gradients")
        found["gradients"] = {step: distance(each, expected[step]) for step, each in gradients.items()}
    if whole:
        specs = model_tensors(whole.model)
        found |= answers(place, whole)
        found["weights"] = distance(load_parameters(place, specs), load_parameters(alone, specs))
    Path(f"{place}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    """Have messages that overlap in models this small."""
    with cuda_calls_on_cpu():  # before megatron-core is imported
        from hybridtron.distributed.data_parallel import replicas

    before = tensor_overlap.LEAST_ROWS, replicas.BUCKET_ELEMENTS
    tensor_overlap.LEAST_ROWS, replicas.BUCKET_ELEMENTS = LEAST_ROWS, BUCKET_ELEMENTS
    yield
    tensor_overlap.LEAST_ROWS, replicas.BUCKET_ELEMENTS = before


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # megatron-core's advice
    folder, here = Path(sys.argv[1]), read_environment()
    task = json.loads((folder / "cases.json").read_text())
    gc.freeze()  # each layout ends with a collection
    with small_sizes(), in_float64() if task["float64"] else contextlib.nullcontext():
        for name, case in task["cases"].items():
            try_case(from_json(case), name, folder, here, task["rounding"])
    gc.unfreeze()  # what is left frozen at the end is reported as leaks


if __name__ == "__main__":
    main()
