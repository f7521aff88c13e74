"""Configs of searches: what is refused, in one line."""

from __future__ import annotations

import pytest

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.config.load import build
from hybridtron.errors import UserError

GOOD = {
    "name": "x",
    "evaluations": 4,
    "space": {"blocks": ["attn", "mlp"], "layers": 6},
    "evaluator": {"type": "function"},
    "engine": {"type": "random"},
}


def made(**changes) -> SearchConfig:
    """A config with dotted keys changed, written with __ for the dot."""
    mapping = {key: dict(value) if isinstance(value, dict) else value for key, value in GOOD.items()}
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = mapping
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return build(mapping, SearchConfig)


def test_constraints_become_a_space():
    config = made(
        space__fixed="? attn ? ? ? mlp",
        space__at_most={"attn": 4},
        space__at_least={"mlp": 1},
        space__longest_run={"attn": 2},
        space__never_first=["attn"],
        space__never_adjacent=[["mlp", "mlp"]],
    )
    space = config.space.patterns
    assert [" ".join(space.names(pattern)) for pattern in space.enumerate()] == [
        "mlp attn attn mlp attn mlp",
        "mlp attn mlp attn attn mlp",
    ]


REFUSALS = {
    "nothing is left": (
        {"space__at_most": {"attn": 2, "mlp": 3}},
        ["space = {at_most: {attn: 2, mlp: 3}}", "leave a pattern of 6 layers", "without at_most there are some"],
    ),
    "nothing is left by two": (
        {"space__at_most": {"attn": 1}, "space__never_adjacent": [["mlp", "mlp"]]},
        ["without at_most or never_adjacent there are some"],
    ),
    "unknown block": ({"space__at_most": {"atn": 2}}, ["space.at_most.atn", "attn, mlp", "nearest: attn"]),
    "unknown block first": ({"space__never_first": ["ml"]}, ["space.never_first", "nearest: mlp"]),
    "unknown block in a pair": ({"space__never_adjacent": [["mlp", "moe"]]}, ["space.never_adjacent", "moe"]),
    "unknown block fixed": ({"space__fixed": "? ? ? ? ? atn"}, ["space.fixed", "atn", "nearest: attn"]),
    "too few words": ({"space__fixed": "attn ?"}, ["space.fixed", "6 words"]),
    "a block twice": ({"space__blocks": ["attn", "attn"]}, ["space.blocks", "different names"]),
    "a block of two words": ({"space__blocks": ["attn", "my mlp"]}, ["space.blocks"]),
    "a run of none": ({"space__longest_run": {"attn": 0}}, ["space.longest_run.attn", "at least 1"]),
    "unknown engine": ({"engine__type": "bayes"}, ["engine.type", "bayesian, evolution", "nearest: bayesian"]),
    "key of another engine": ({"engine__population": 9}, ["engine.population", "unknown key"]),
    "unknown evaluator": ({"evaluator__type": "functoin"}, ["evaluator.type", "nearest: function"]),
    "more top clusters than clusters": ({"aggregator__top": 9}, ["aggregator.top", "at most clusters 5"]),
    "negative context": ({"aggregator__context": -1}, ["aggregator.context", "at least 0 or all"]),
    "the same seed twice": ({"seeds": [1, 1]}, ["seeds", "different"]),
    "steps that do not divide": (
        {"methodology__type": "end_incremental", "methodology__step_layers": 4},
        ["methodology.step_layers = 4", "divisor of space.layers 6"],
    ),
    "steps of one shot": ({"methodology__step_layers": 2}, ["methodology.step_layers", "nothing with type one_shot"]),
    "positions that move": (
        {"methodology": {"type": "middle_incremental", "step_layers": 2}, "space__fixed": "attn ? ? ? ? ?"},
        ["space.fixed", "middle_incremental"],
    ),
    "unusable name": ({"name": "a/b"}, ["name", "letters, digits"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_key_and_the_cure(case):
    changes, words = REFUSALS[case]
    with pytest.raises(UserError) as refusal:
        made(**changes)
    for word in words:
        assert word in str(refusal.value)
