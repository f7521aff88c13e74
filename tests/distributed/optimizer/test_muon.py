"""Muon's update is that of a plain writing in float64, matrix by matrix."""

import math

import pytest
import torch

from hybridtron.api.configs import read_training_config
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from hybridtron.training.corpus import open_corpus

SAMPLER = BatchSampler(BatchSizes(4), 2, 0, 1)

LR, DECAY = 2e-2, 0.3
BLOCKS = {
    "attn": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
    "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8},
    "moe": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16, "shared_ffn_hidden_size": 8, "shared_gate": True},
}
SETTINGS = [
    {"lr_ratio": 0.5, "momentum": 0.9},
    {"nesterov": False, "scale": "spectral", "ns_steps": 4},
]


def plain_update(weight, momentum, gradient, muon, lr):
    """Return the new weight and momentum of one matrix, as Liu et al. 2025 (arXiv 2502.16982) write it."""
    momentum = muon.momentum * momentum + (1 - muon.momentum) * gradient
    update = (1 - muon.momentum) * gradient + muon.momentum * momentum if muon.nesterov else momentum
    x = update / update.norm()
    for _ in range(muon.ns_steps):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    rows, columns = weight.shape
    factor = math.sqrt(max(1, rows / columns)) if muon.scale == "spectral" else 0.2 * math.sqrt(max(rows, columns))
    return (1 - lr * DECAY) * weight - lr * factor * x, momentum


def matrices(spec, tensor):
    """Cut a tensor into what Muon takes as matrices: experts, and the parts of packed rows or columns."""
    experts = tensor.unbind(0) if spec.experts else [tensor]
    axis, sizes = spec.axis - spec.experts, [part.size for part in spec.parts]
    return [part for expert in experts for part in (expert.split(sizes, axis) if sizes else [expert])]


@pytest.mark.parametrize("settings", SETTINGS)
def test_several_steps_equal_a_plain_writing(corpus, settings):
    config = read_training_config(
        {
            "name": "muon",
            "model": {"hidden_size": 32, "blocks": BLOCKS, "pattern": "attn mamba moe"},
            "data": {"train": str(corpus / "train"), "seq_len": 32},
            "train": {"steps": 3, "global_batch_size": 4, "micro_batch_size": 2},
            "optimizer": {"type": "muon", "lr": LR, "weight_decay": DECAY, "clip_grad": 0, "muon": settings},
        }
    )
    muon = config.optimizer.muon
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        taking = {name: p for name, p in model.named_parameters() if engine.specs[name].takes_muon}
        expected = {name: [m.detach().double() for m in matrices(engine.specs[name], p)] for name, p in taking.items()}
        momenta = {name: [torch.zeros_like(m) for m in each] for name, each in expected.items()}
        for step in range(3):
            lr = LR / (step + 1)
            engine.train_step(list(global_batch(open_corpus(config).train, step, SAMPLER)), lr)
            for name, parameter in taking.items():
                gradients = matrices(engine.specs[name], parameter.main_grad.double())
                updated = [
                    plain_update(*each, muon, lr * muon.lr_ratio)
                    for each in zip(expected[name], momenta[name], gradients, strict=True)
                ]
                expected[name], momenta[name] = (list(each) for each in zip(*updated, strict=True))
        for name, parameter in taking.items():
            for found, other in zip(matrices(engine.specs[name], parameter), expected[name], strict=True):
                assert (found - other).abs().max() < 2e-5, name
    mixers = {name.split("mixer.")[1] for name in taking}
    assert mixers == {
        "qkv.weight", "proj.weight", "in_proj.weight", "out_proj.weight", "router_weight", "gate_up", "down",
        "shared.gate_up.weight", "shared.down.weight",
    }  # fmt: skip
