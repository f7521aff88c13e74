"""Limits on gradients of groups of parameters."""

import pytest
import torch

from hybridtron.api.configs import read_training_config
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.optimizer.gradient_clipping import clip_groups
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.model.tensors import parameter_group
from hybridtron.training.build import build_engine
from hybridtron.training.corpus import open_corpus

SAMPLER = BatchSampler(BatchSizes(4), 2, 0, 1)

LIMITS = {"embedding": 0.05, "norms": 1e-3, "attn": 1e9, "moe": 0.02}


def config_of(corpus, clip_groups, **optimizer):
    blocks = {
        "attn": {"type": "attention", "num_heads": 2},
        "moe": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16},
    }
    return read_training_config(
        {
            "name": "clip",
            "model": {"hidden_size": 32, "blocks": blocks, "pattern": "attn moe", "tie_embeddings": True},
            "data": {"train": str(corpus / "train"), "seq_len": 32},
            "train": {"steps": 1, "global_batch_size": 4, "micro_batch_size": 2},
            "optimizer": {"lr": 1e-3, "clip_grad": 0, "clip_groups": clip_groups, **optimizer},
        }
    )


def gradients(corpus, clip_groups, **optimizer):
    """Return the gradients that the update of a first step took, their reported norm, and the group of each."""
    config = config_of(corpus, clip_groups, **optimizer)
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        result = engine.train_step(list(global_batch(open_corpus(config).train, 0, SAMPLER)), 1e-3)
        found = {name: parameter.main_grad.clone() for name, parameter in model.named_parameters()}
    return found, result.grad_norm, {name: parameter_group(config.model, name) for name in found}


def norm(tensors):
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm()


def test_each_group_is_scaled_to_its_limit_and_no_other(corpus):
    plain, _, groups = gradients(corpus, {})
    clipped, total, _ = gradients(corpus, LIMITS)
    assert set(groups.values()) == set(LIMITS)
    for group, limit in LIMITS.items():
        names = [name for name in groups if groups[name] == group]
        before = norm(plain[name] for name in names)
        assert norm(clipped[name] for name in names) == pytest.approx(float(min(before, limit)), rel=1e-3)
        for name in names:
            assert torch.allclose(clipped[name], plain[name] * min(1, limit / before), rtol=2e-3), name
    assert total == pytest.approx(float(norm(clipped.values())), rel=1e-5)
    assert before > limit  # of experts, the last group


def test_the_limit_of_all_comes_after_those_of_groups(corpus):
    clipped, total, _ = gradients(corpus, LIMITS, clip_grad=0.01)
    assert total > 0.02
    assert norm(clipped.values()) == pytest.approx(0.01, rel=1e-3)


def test_a_norm_that_is_not_finite_leaves_no_finite_gradient(corpus):
    """So that the step is skipped, where zeros in place of gradients would be an update."""
    config = config_of(corpus, LIMITS)
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        model.embedding.weight.main_grad.fill_(1e25)  # whose square is beyond float32
        engine.optimizer.prepare_grads()
        clip_groups(engine.optimizer, engine.adamw.clip_groups, parallel_context)
        assert not model.embedding.weight.grad.isfinite().any()
        assert model.final_norm.weight.grad.isfinite().all()


def test_an_unknown_group_is_refused_with_the_nearest(corpus):
    with pytest.raises(UserError, match=r"^optimizer.clip_groups.embeding = 1.0: expected .*embedding"):
        config_of(corpus, {"embeding": 1.0})
    with pytest.raises(UserError, match=r"^optimizer.clip_groups.head = 1.0: expected"):  # tied
        config_of(corpus, {"head": 1.0})


def test_a_group_that_has_the_name_of_a_block_is_refused(corpus):
    read = config_of(corpus, {}).model_dump()
    read["model"]["blocks"]["norms"] = read["model"]["blocks"].pop("attn")
    read["model"]["pattern"] = "norms moe"
    read_training_config(read)
    read["optimizer"]["clip_groups"] = {"norms": 1.0}
    with pytest.raises(UserError, match=r"clip_groups.norms = 1.0: expected another name for the block norms"):
        read_training_config(read)
