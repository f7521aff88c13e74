"""What the engine reads at a step: the norm of the gradients is megatron-core's; updates of any Adam are counted."""

import math
from types import SimpleNamespace

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


@pytest.fixture(scope="module")
def after_a_step(tmp_path_factory, corpus):
    """Return an engine with experts and dense layers after a step, its result, and megatron-core's norm."""
    blocks = {
        "attn": {"type": "attention", "num_heads": 2},
        "moe": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16},
    }
    config = read_training_config(
        {
            "name": "norm",
            "model": {"hidden_size": 32, "blocks": blocks, "pattern": "attn moe"},
            "data": {"train": str(corpus / "train"), "seq_len": 32},
            "train": {"steps": 1, "global_batch_size": 4, "micro_batch_size": 2},
            "optimizer": {"lr": 1e-3, "clip_grad": 0},
        }
    )
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        result = engine.train_step(list(global_batch(open_corpus(config).train, 0, SAMPLER)), 1e-3)
        yield engine, result, float(engine.optimizer.get_grad_norm())


def test_the_norm_is_that_of_megatron_core(after_a_step):
    _, result, expected = after_a_step
    assert result.grad_norm == expected > 0


def test_the_experts_shares_are_read_with_it(after_a_step):
    _, result, _ = after_a_step
    (shares,) = result.expert_load.values()
    assert len(shares) == 4
    assert math.fsum(shares) == pytest.approx(1)


def test_updates_are_counted_by_parameter_or_as_fused_adam_does_by_group(after_a_step):
    from hybridtron.distributed.optimizer.state import set_updates, updates

    engine, _, _ = after_a_step
    assert updates(engine.optimizer) == 1
    set_updates(engine.optimizer, 5)
    assert updates(engine.optimizer) == 5
    fused = SimpleNamespace(param_groups=[{"step": 3}, {}], state={torch.zeros(1): {"exp_avg": torch.zeros(1)}})
    chain = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=fused)])
    assert updates(chain) == 3
    set_updates(chain, 7)
    assert [group["step"] for group in fused.param_groups] == [7, 7]
