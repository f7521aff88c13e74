"""Strict takes exactly what is declared; problem() and dispatch() put errors where they belong."""

from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import BeforeValidator, Field, field_validator, model_validator

from hybridtron.config.load import build
from hybridtron.config.schema import Strict, dispatch, problem
from hybridtron.errors import UserError


class Values(Strict):
    whole: int = 1
    number: float = 1.0
    flag: bool = False
    text: str = ""
    pair: tuple[float, float] = (0.0, 1.0)
    nested: tuple[tuple[int, ...], ...] = ()


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"number": 3}, "number", 3.0),
        ({"pair": [1, 2.5]}, "pair", (1.0, 2.5)),
        ({"pair": (1, 2.5)}, "pair", (1.0, 2.5)),
        ({"nested": [[1], [2, 3], []]}, "nested", ((1,), (2, 3), ())),
    ],
)
def test_whole_numbers_serve_as_floats_and_lists_as_tuples(given, key, value):
    assert getattr(Values.model_validate(given), key) == value


@pytest.mark.parametrize(
    "given",
    [
        {"whole": 1.5},
        {"whole": 1.0},
        {"whole": True},
        {"whole": "1"},
        {"number": True},
        {"number": "1"},
        {"number": float("inf")},
        {"number": float("nan")},
        {"flag": "true"},
        {"flag": 1},
        {"text": 1},
        {"text": None},
        {"pair": [1]},
        {"pair": "12"},
        {"pair": ["1", "2"]},
        {"nested": [[1.5]]},
        {"unknown": 1},
    ],
)
def test_nothing_else_is_converted(given):
    with pytest.raises(pydantic.ValidationError):
        Values.model_validate(given)


def test_configs_are_frozen_and_their_defaults_are_checked():
    with pytest.raises(pydantic.ValidationError):
        Values().whole = 2

    class WrongDefault(Strict):
        steps: int = "many"

    with pytest.raises(pydantic.ValidationError):
        WrongDefault()


class Block(Strict):
    type: str
    width: int = Field(0, exclude=True)


class Attention(Block):
    type: Literal["attention"]
    num_heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _divides(self):
        if self.width % self.num_heads:
            raise problem("num_heads", self.num_heads, f"a divisor of width {self.width}")
        return self


class Feedforward(Block):
    type: Literal["mlp"]
    activation: Literal["gelu", "relu"] = "gelu"


BLOCKS: dict[str, type[Block]] = {"attention": Attention, "mlp": Feedforward}


class Model(Strict):
    width: int
    blocks: dict[str, Annotated[Block, BeforeValidator(lambda value: dispatch(value, BLOCKS))]]

    @model_validator(mode="before")
    @classmethod
    def _tell_width(cls, data: Any):
        tell = {name: {**block, "width": data["width"]} for name, block in data["blocks"].items()}
        return {**data, "blocks": tell}


class Run(Strict):
    model: Model
    steps: int = 1

    @field_validator("steps")
    @classmethod
    def _even(cls, steps):
        if steps == 13:
            raise problem("", steps, "no {unlucky} number")
        return steps

    @model_validator(mode="after")
    def _agrees(self):
        if self.steps > 100:
            raise problem("model.width", self.model.width, "less with so many steps")
        return self


def refusal(blocks, **run):
    with pytest.raises(UserError) as caught:
        build({"model": {"width": 8, "blocks": blocks}, **run}, Run)
    return str(caught.value)


def test_dispatch_builds_the_class_that_type_names():
    config = build(
        {"model": {"width": 8, "blocks": {"a": {"type": "attention", "num_heads": 2}, "m": {"type": "mlp"}}}}, Run
    )
    assert config.model.blocks["a"] == Attention(type="attention", num_heads=2, width=8)
    assert isinstance(config.model.blocks["m"], Feedforward)


def test_dispatch_passes_instances():
    made = Feedforward(type="mlp")
    assert dispatch(made, BLOCKS) is made


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({}, "model.blocks.a.type: required key is missing: expected one of attention, mlp"),
        ({"type": "atention"}, "model.blocks.a.type = 'atention': expected one of attention, mlp (nearest: attention)"),
        ({"type": 3}, "model.blocks.a.type = 3: expected one of attention, mlp"),
        ({"type": "attention"}, "model.blocks.a.num_heads: required key is missing"),
        ({"type": "attention", "num_heads": 0}, "model.blocks.a.num_heads = 0: expected at least 1"),
        ({"type": "attention", "num_heads": 3}, "model.blocks.a.num_heads = 3: expected a divisor of width 8"),
        ({"type": "attention", "num_head": 2}, "model.blocks.a.num_head: unknown key (nearest: num_heads)"),
        ({"type": "mlp", "num_heads": 2}, "model.blocks.a.num_heads: unknown key: expected one of type, activation"),
        ({"type": "mlp", "widht": 2}, "model.blocks.a.widht: unknown key: expected one of type, activation"),
        (
            {"type": "mlp", "activation": "gelo"},
            "model.blocks.a.activation = 'gelo': expected one of gelu, relu (nearest: gelu)",
        ),
    ],
)
def test_errors_inside_a_dispatched_block_name_its_keys(block, line):
    assert refusal({"a": block}) == line


def test_all_blocks_report():
    assert refusal({"a": {"type": "mlp", "x": 1}, "b": {"type": "attention"}}).split("\n") == [
        "model.blocks.a.x: unknown key: expected one of type, activation",
        "model.blocks.b.num_heads: required key is missing",
    ]


def test_a_problem_of_a_field_or_between_sections():
    mlp = {"a": {"type": "mlp"}}
    assert refusal(mlp, steps=13) == "steps = 13: expected no {unlucky} number"
    assert refusal(mlp, steps=101) == "model.width = 8: expected less with so many steps"
