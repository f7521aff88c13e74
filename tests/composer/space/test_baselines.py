"""Baselines by name, for the blocks and layers of a space."""

from __future__ import annotations

import pytest

from hybridtron.composer.evaluation.evaluators import make_evaluator
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.space.baselines import baseline
from hybridtron.config.load import build
from hybridtron.errors import UserError
from tests.composer.small import MAD

LETTERS = {"attn": "A", "mlp": "M", "mamba": "B"}


@pytest.mark.parametrize(
    ("name", "blocks", "layers", "expected"),
    [
        ("striped 1:4", ["attn", "mlp"], 12, "AMMMMAMMMMAM"),
        ("striped 1:8", ["mlp", "attn"], 9, "AMMMMMMMM"),
        ("3:1", ["attn", "mamba"], 8, "BBBABBBA"),
        ("3:1", ["attn", "mamba", "mlp"], 16, "BMBMBMAMBMBMBMAM"),
        ("nemotron-like", ["attn", "mamba", "mlp"], 12, "BMBMBMAMBMBM"),
        ("attn mlp", ["attn", "mlp"], 2, None),
    ],
)
def test_layouts(name, blocks, layers, expected):
    found = baseline(name, blocks, layers)
    assert (found and "".join(LETTERS[block] for block in found)) == expected


def test_nemotron_has_four_attention_layers_of_52_as_the_published_model():
    found = baseline("nemotron-like", [*LETTERS], 52)
    assert [found.count(block) for block in LETTERS] == [4, 26, 22]


@pytest.mark.parametrize("name", ["3:1", "nemotron-like"])
def test_a_space_without_a_linear_mixer_refuses_them(name):
    with pytest.raises(UserError, match=f"{name}: the space has no linear mixer; expected one of mamba, .* attn, mlp"):
        baseline(name, ["attn", "mlp"], 8)


def searched(**changes) -> SearchConfig:
    mapping = {"name": "b", "evaluations": 2, "space": {"blocks": ["attn", "mlp"], "layers": 5},
               "evaluator": MAD, "engine": {"type": "random"}, **changes}  # fmt: skip
    return build(mapping, SearchConfig)


def test_names_stand_for_patterns_in_a_config():
    config = searched(confirm={"baselines": ["striped 1:4"]}, equal_size={"pattern": "striped 1:4"})
    assert config.baselines == [("attn", *["mlp"] * 4)]
    sizes = make_evaluator(config).sizes
    assert sizes.width(config.baselines[0]) is None
    assert "attn 4*mlp" in sizes.sentence
    with pytest.raises(UserError, match="3:1: the space has no linear mixer"):
        searched(confirm={"baselines": ["3:1"]})
