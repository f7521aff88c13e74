"""One model with every primitive there is: its parameters, FLOPs and state are those of the built model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.mixers.test_contract import PRIMITIVES, WIDTH

SEQ_LEN = 64


@pytest.fixture(scope="module")
def config():
    blocks = {name: {"type": name, **keys} for name, keys in PRIMITIVES.items()}
    sections = {"hidden_size": WIDTH, "vocab_size": 64, "blocks": blocks, "pattern": " ".join(blocks)}
    return build(sections, ModelConfig)


@pytest.fixture(scope="module")
def model(config):
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    return model


def test_it_has_them_all(config):
    assert {block.type for block in config.blocks.values()} == set(MIXERS)


def test_parameters_are_exact(config, model):
    assert describe(config, SEQ_LEN).total == sum(parameter.numel() for parameter in model.parameters())


def test_flops_are_those_of_the_counter_and_the_unseen(config, model):
    """The features of the positions of implicit filters apart, which are counted too: without gradient, once."""
    tokens = torch.zeros(1, SEQ_LEN, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens)
    unseen = sum(config.blocks[name].unseen_flops(SEQ_LEN) for name in config.layer_names)
    assert unseen > 0
    assert counter.get_total_flops() == describe(config, SEQ_LEN).flops_forward - unseen


def test_state_is_the_sum_of_the_primitives(config):
    assert describe(config, SEQ_LEN).state_size == sum(
        config.blocks[name].state_size(SEQ_LEN) for name in config.layer_names
    )
