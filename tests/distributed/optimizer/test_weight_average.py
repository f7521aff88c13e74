"""The average of weights is that of a plain writing in float64."""

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

DECAY, STEPS = 0.8, 5


@pytest.mark.parametrize("every", [1, 2])
def test_it_follows_the_weights_after_every_update_or_some(corpus, every):
    config = read_training_config(
        {
            "name": "average",
            "model": {
                "hidden_size": 32,
                "blocks": {"mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8}},
                "pattern": "mamba",
            },
            "data": {"train": str(corpus / "train"), "seq_len": 32},
            "train": {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2},
            "optimizer": {"lr": 1e-2, "ema": {"decay": DECAY, "every": every}},
        }
    )
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        expected = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
        data = open_corpus(config).train
        for step in range(STEPS):
            engine.train_step(list(global_batch(data, step, SAMPLER)), 1e-2)
            if (step + 1) % every == 0:
                for name, parameter in model.named_parameters():
                    expected[name] = DECAY * expected[name] + (1 - DECAY) * parameter.detach().double()
        trained = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with engine.average.in_place_of_weights():
            for name, parameter in model.named_parameters():
                assert (parameter - expected[name]).abs().max() < 1e-6, name
                assert not torch.equal(parameter, trained[name]), name
        assert all(torch.equal(parameter, trained[name]) for name, parameter in model.named_parameters())
