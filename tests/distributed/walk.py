"""One of the processes that walk the table of layouts; rank r takes part in those of more than r processes.

For every layout: the losses and gradient norms of each step, and after the first step how far the gradients, put
together from all processes, are from those of one process.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hybridtron.backends.megatron import tensor_overlap
from hybridtron.config.load import build
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import MicroBatch, micro_batch, step_documents
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.config import PrecisionConfig
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import ParallelContext, process_groups
from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.generation.pipeline import Pipeline
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.init_map import weight_rules
from hybridtron.training.validation.resolve import data_parallel_size, resolve
from tests.distributed.layouts import LATE, SAVED, TABLE, Layout
from tests.distributed.models import (
    BLOCKS,
    COMPARED,
    GLOBAL_BATCH,
    INITIAL,
    ISOLATED,
    MICRO_BATCH,
    MODELS,
    OPTIMIZER,
    PRECISION,
    RESUMED_UNTIL,
    SAVED_AT,
    SEQ_LEN,
    STEPS,
    VOCAB,
)
from tests.model.late_host import offloaded


def run_config(layout: Layout) -> RunConfig:
    model = {"hidden_size": 32, "vocab_size": 320, "blocks": BLOCKS, **MODELS[layout.model]}
    train = {"steps": STEPS, "global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH, "z_loss": 1e-3}
    config = {"name": "walk", "seed": 3, "model": model, "train": train, "parallel": layout.parallel}
    config |= {"precision": PRECISION.get(layout.model, {})}
    data = {"train": "none", "seq_len": SEQ_LEN, "tokenizer": "byte"}
    config |= {"data": data | ({"documents": "isolate"} if layout.model in ISOLATED else {})}
    config |= {"optimizer": {"lr": 1e-2, **OPTIMIZER.get(layout.model, {})}}
    return resolve(build(config, RunConfig))


class Documents:
    """Documents of random lengths, among them of 1 token, and whole sequences."""

    @staticmethod
    def documents(indices: np.ndarray) -> list[np.ndarray]:
        pieces = []
        for index in indices:
            numbers = np.random.default_rng(index)
            cuts = np.flatnonzero(numbers.random(SEQ_LEN) < (index % 4) / 8) + 1
            pieces.append(np.diff([0, *cuts, SEQ_LEN + 1]))
        return pieces


def micro_batches(step: int, parallel_context: ParallelContext, isolate: bool) -> list[MicroBatch]:
    """Random text whose first half the second half repeats; this process's contiguous block of the global batch."""
    half = torch.randint(VOCAB, (GLOBAL_BATCH, SEQ_LEN // 2 + 1), generator=torch.Generator().manual_seed(step))
    text = torch.cat([half, half], 1)
    rank, size = parallel_context.data_rank, parallel_context.data_size
    windows = text.chunk(size)[rank][:, : SEQ_LEN + 1].split(MICRO_BATCH)
    if not isolate:
        return [micro_batch(each) for each in windows]
    documents = step_documents(Documents, step, BatchSampler(BatchSizes(GLOBAL_BATCH), MICRO_BATCH, rank, size))
    return [micro_batch(*each) for each in zip(windows, documents, strict=True)]


def gathered_gradients(engine, parallel_context: ParallelContext) -> dict[str, torch.Tensor]:
    """The gradient of every parameter, whole; a piece that several processes hold must be equal in all."""
    mine = [
        (name, parallel_context.shards, parameter.main_grad.clone())
        for chunk in engine.chunks
        for name, parameter in chunk.named_parameters()
        if parameter.requires_grad
    ]
    everyone: list = [None] * parallel_context.world_size
    dist.all_gather_object(everyone, mine)
    whole: dict[str, torch.Tensor] = {}
    for name, shards, gradient in (entry for process in everyone for entry in process):
        assert gradient.isfinite().all(), name
        spec = engine.specs[name]
        full = whole.setdefault(name, torch.full(spec.shape, torch.nan, dtype=gradient.dtype))
        before = spec.shard(full, shards)
        assert before.isnan().all() or torch.allclose(before, gradient, rtol=1e-4, atol=1e-7), f"{name}: copies differ"
        spec.put(full, gradient, shards)
    assert not any(full.isnan().any() for full in whole.values()), "a piece that nobody holds"
    return whole


def distance(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each parameter's gradient, relative to its norm."""
    assert gradients.keys() == expected.keys()
    return {
        name: float((gradients[name] - other).norm() / other.norm().clamp_min(1e-6)) for name, other in expected.items()
    }


def hide_until_waited_for(engine) -> None:
    """Put NaN in the place of parameters whose gathers nothing has waited for yet."""

    def show(group, values, force_sync: bool) -> None:
        del group.start_param_sync
        for bucket, data in zip(group.buckets, values, strict=True):
            bucket.param_data.copy_(data)

    assert engine.gathers.pending
    for group in engine.gathers.pending:
        group.start_param_sync(force_sync=True)
        values = [bucket.param_data.clone() for bucket in group.buckets]
        for bucket in group.buckets:
            bucket.param_data.fill_(torch.nan)
        group.start_param_sync = partial(show, group, values)


def average_loss(engine, batches) -> float:
    """The loss of the average of weights; the weights themselves must be the same bits afterwards."""
    before = [parameter.clone() for chunk in engine.chunks for parameter in chunk.parameters()]
    with engine.average.in_place_of_weights():
        loss = engine.evaluate(batches, len(batches) * MICRO_BATCH)
    after = [parameter for chunk in engine.chunks for parameter in chunk.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return loss


def can_generate(layout: Layout) -> bool:
    return layout.parallel.get("context", 1) == 1 and not layout.after and layout.model not in PRECISION


@torch.no_grad()
def generated(engine, parallel_context: ParallelContext) -> list[list[float]]:
    """Some logits of two sequences after each prompt, of different lengths, and after each of three steps."""
    chunks = engine.chunks
    whole = chunks[0].stage.is_first and chunks[0].stage.is_last
    model = chunks[0] if whole else Pipeline(chunks, parallel_context.pipeline_group)
    tokens = torch.randint(VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
    state = BatchState(model, 2, room=10)
    logits = [state.advance(tokens[:, :7], [7, 4])]
    for t in range(7, 10):
        logits.append(state.advance(tokens[:, t : t + 1], [1, 1]))
    return torch.cat(logits)[:, :VOCAB:4].tolist()


def try_layout(name: str, layout: Layout, parallel_context: ParallelContext, folder: Path) -> dict:
    from hybridtron.distributed import checkpoint

    config = run_config(layout)
    assert data_parallel_size(config, parallel_context.world_size) == layout.data
    engine, _ = build_engine(config, parallel_context)
    if count := config.parallel.cpu_offload_layers:  # of no effect on a CPU
        for chunk in engine.chunks:
            offloaded(chunk, count)
    found: dict = {"losses": [], "grad_norms": [], "expert_loads": [], "mtp_losses": []}

    def save(target: Path) -> None:
        if parallel_context.is_main:
            target.mkdir()
        engine.agree(True)
        checkpoint.save(target, engine)

    start = folder / f"{layout.after or layout.model}.{'checkpoint' if layout.after else 'start'}"
    if layout.model in INITIAL:
        source, keys = INITIAL[layout.model]
        train = config.train.model_copy(update=keys)
        rules = weight_rules(train, config.model, run_config(TABLE[source]).model)
        checkpoint.load_weights(folder / f"{source}.start", engine, rules=rules)
    if name in MODELS:
        save(start)
    else:
        if layout.model not in INITIAL:
            checkpoint.load(start, engine)
        if not layout.after:
            save(folder / f"{name}.read")
    if can_generate(layout):
        found["generated"] = generated(engine, parallel_context)
    first, end = (SAVED_AT, RESUMED_UNTIL) if layout.after else (0, STEPS if name in MODELS else COMPARED)
    for step in range(first, end):
        statistics = engine.collect_layer_statistics() if step == 0 else None
        result = engine.train_step(micro_batches(step, parallel_context, config.data.isolates), lr=1e-2)
        if name in LATE:
            hide_until_waited_for(engine)
        if statistics:
            found["layer_statistics"] = statistics.take()
        found["losses"].append(result.loss)
        found["grad_norms"].append(result.grad_norm)
        found["expert_loads"].append(result.expert_load)
        found["mtp_losses"].append(result.mtp_loss)
        if step == 0 and not config.parallel.distributed_optimizer:
            gradients = gathered_gradients(engine, parallel_context)
            reference = folder / f"{layout.model}.gradients.pt"
            if name == layout.model:
                torch.save(gradients, reference)
            elif parallel_context.is_main:
                found["gradient_distance"] = distance(gradients, torch.load(reference))
        if step + 1 == COMPARED and engine.average:
            found["ema_loss"] = average_loss(engine, micro_batches(0, parallel_context, isolate=False))
        if step + 1 == SAVED_AT and name in SAVED:
            save(folder / f"{name}.checkpoint")
    return found


def main() -> None:
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():  # before megatron-core is imported
        from hybridtron.distributed.data_parallel import replicas

    torch.set_num_threads(1)
    # Models in FP8 have fp32 parameters here: the rounding of bf16 would hide what a layout does to scales.
    PrecisionConfig.parameter_format = property(lambda self: "bf16" if self.format == "bf16" else "fp32")
    tensor_overlap.LEAST_ROWS = 1  # several pieces of few tokens
    replicas.BUCKET_ELEMENTS = 5000  # several buckets of gradients, with padding between them, in models this small
    warnings.filterwarnings("ignore")  # megatron-core's advice
    gc.freeze()  # each layout ends with a collection
    folder, here = Path(sys.argv[1]), read_environment()
    wanted = sys.argv[2:] or list(TABLE)
    for index, name in enumerate(wanted):
        layout = TABLE[name]
        if here.rank >= layout.world_size:
            continue
        method = f"file://{folder}/meeting{index}" if layout.world_size > 1 else None
        environment = Environment(here.rank, layout.world_size, here.rank, method, "walk")
        with process_groups(run_config(layout).parallel, environment) as parallel_context:
            found = try_layout(name, layout, parallel_context, folder)
            if parallel_context.is_main:
                (folder / f"{name}.json").write_text(json.dumps(found))
                print(name, [round(loss, 6) for loss in found["losses"]], flush=True)
        del parallel_context  # a thread for each of its groups wakes every 10 ms, also while others walk
    gc.unfreeze()  # what is left frozen at the end is reported as leaks


if __name__ == "__main__":
    main()
