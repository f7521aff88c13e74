"""Sums of weight gradients on CUDA: bfloat16 factors of all micro-batches add up in float32, in the buffer itself."""

import pytest
import torch

from hybridtron.api.configs import read_training_config
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.corpus import open_corpus
from tests.distributed.test_weight_gradients import record, sums_of
from tests.gpu.conftest import DRY, write_config

SAMPLER = BatchSampler(BatchSizes(8), 2, 0, 1)

pytestmark = pytest.mark.gpu

MODEL = {
    "hidden_size": 256,
    "backend": "megatron",
    "blocks": {
        "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
        "mlp": {"type": "swiglu", "ffn_hidden_size": 512},
    },
    "pattern": "attn mlp",
}
BOUNDS = {"fp32": 1e-5, "bf16": 1e-2 if DRY else 1e-5}  # a CPU rounds the products of bfloat16 factors first
FACTORS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("number_format", BOUNDS)
def test_they_are_the_sums_in_float64(cuda, tmp_path, corpus, monkeypatch, number_format, tied):
    from hybridtron.training.build import build_engine  # imports megatron-core, which process_groups must come before

    model = MODEL | {"tie_embeddings": tied}
    config = read_training_config(
        write_config(tmp_path, corpus, model=model), f"precision.format={number_format}", "optimizer.clip_grad=0"
    )
    seen = record(monkeypatch)
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (chunk,) = build_engine(config, parallel_context)
        assert engine.train_step(list(global_batch(open_corpus(config).train, 0, SAMPLER)), 1e-3).applied
        found = {name: (p.main_grad.data_ptr(), p.main_grad.clone()) for name, p in chunk.named_parameters()}
    assert {x.dtype for _, _, x in seen} == {FACTORS[number_format]}
    expected = sums_of(seen)
    linears = {f"layers.{layer}" for layer in ("0.mixer.qkv", "0.mixer.proj", "1.mixer.gate_up", "1.mixer.down")}
    for name in linears:
        where, gradient = found[f"{name}.weight"]
        assert gradient.device.type == cuda.type
        assert (gradient - expected[where]).norm() <= BOUNDS[number_format] * expected[where].norm(), name
