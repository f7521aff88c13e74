"""Layers of the transformer_engine backend on CUDA against those of the torch backend, with equal weights."""

import pytest
import torch

from hybridtron.api.configs import read_training_config
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.mixers.registry import MIXERS
from hybridtron.training.corpus import open_corpus
from tests.gpu.comparison import assert_near, distance
from tests.gpu.conftest import write_config
from tests.gpu.primitives import CASES, PRIMITIVES, ROUTED

SAMPLER = BatchSampler(BatchSizes(4), 2, 0, 1)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_cuda", "transformer_engine")]

NEAR, NEAR_ROUTED = 0.05, 0.2  # bfloat16; with experts, a choice that rounding turns
SAME_LOSS = 5e-3


def run_config(folder, corpus, blocks, backend, *overrides):
    model = {"hidden_size": 256, "blocks": blocks, "pattern": " ".join(blocks), "backend": backend}
    config = write_config(folder, corpus, model={**model, "zero_centered_norms": True})
    return read_training_config(config, "precision.format=bf16", "data.seq_len=128", *overrides)


def passes(config):
    """Logits of random tokens, and the gradients of their loss by parameter."""
    from hybridtron.training.build import build_chunks  # imports megatron-core

    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        (model,), _ = build_chunks(config, parallel_context)
        tokens = torch.randint(256, (2, 129), generator=torch.Generator().manual_seed(1)).to(parallel_context.device)
        loss, _ = model(tokens[:, :-1], tokens[:, 1:])
        loss.mean().backward()
        with torch.no_grad():
            logits = model.logits(tokens[:, :-1])
        return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_near_those_of_torch(tmp_path, corpus, case):
    bound = NEAR_ROUTED if case in ROUTED else NEAR
    (logits, grads), (expected, expected_grads) = (
        passes(run_config(tmp_path, corpus, {"x": CASES[case]}, backend)) for backend in ("transformer_engine", "torch")
    )
    assert distance(logits, expected) <= bound
    assert_near(grads, expected_grads, bound)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_steps_have_the_losses_of_megatron_cores_linears(tmp_path, corpus, recompute):
    """With weight gradients that products add to the buffer of several micro-batches."""
    from hybridtron.training.build import build_engine

    blocks = {name: {"type": name, **PRIMITIVES[name]} for name in MIXERS if name not in ("moe", "hyena_experts")}
    found = {}
    for backend in ("transformer_engine", "megatron"):
        config = run_config(tmp_path, corpus, blocks, backend, f"parallel.recompute={recompute}")
        dataset = open_corpus(config).train
        with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
            engine, _ = build_engine(config, parallel_context)
            results = [engine.train_step(list(global_batch(dataset, step, SAMPLER)), 1e-3) for step in range(5)]
        found[backend] = torch.tensor([[result.loss, result.grad_norm] for result in results])
    torch.testing.assert_close(found["transformer_engine"][:, 0], found["megatron"][:, 0], rtol=SAME_LOSS, atol=0)
    torch.testing.assert_close(found["transformer_engine"][:, 1], found["megatron"][:, 1], rtol=NEAR, atol=0)
