"""Loading a config: one clear line per mistake; what is dumped loads as the same config."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from hybridtron.config import yaml_text
from hybridtron.config.load import build, dump, load
from hybridtron.config.schema import Strict
from hybridtron.errors import UserError
from hybridtron.pattern import parse


class Cosine(Strict):
    type: Literal["cosine"]
    warmup: int = Field(0, ge=0)


class Constant(Strict):
    type: Literal["constant", "flat"]


class Model(Strict):
    hidden_size: int = Field(multiple_of=8)
    pattern: str = "attn"

    @model_validator(mode="after")
    def _known_names(self):
        parse(self.pattern, ["attn", "mlp"])
        return self


class Optimizer(Strict):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.5, ge=0, lt=1)

    @field_validator("lr")
    @classmethod
    def _sane(cls, lr):
        if lr > 10:
            raise ValueError("far too high")
        return lr


class Stage(Strict):
    steps: int = 1


class Run(Strict):
    name: str = Field(min_length=1)
    model: Model
    optimizer: Optimizer = Optimizer()
    schedule: Annotated[Cosine | Constant, Field(discriminator="type")] = Cosine(type="cosine")
    stages: tuple[Stage, ...] = ()
    seeds: int | list[int] = 0
    clip: float | Literal["auto"] | None = None
    tags: dict[str, int] = Field({})
    folder: str | None = None
    world_size: int = Field(1, exclude=True)


GOOD = {"name": "x", "model": {"hidden_size": 64}}


def refusal(**changes):
    with pytest.raises(UserError) as caught:
        build({**GOOD, **changes}, Run)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": 3}, "name = 3: expected text"),
        ({"name": ""}, "name = '': expected text of at least 1 characters"),
        ({"model": None}, "model = null: expected a mapping"),
        ({"model": 3}, "model = 3: expected a mapping"),
        ({"model": {}}, "model.hidden_size: required key is missing"),
        ({"model": {"hidden_size": "64"}}, "model.hidden_size = '64': expected a whole number"),
        ({"model": {"hidden_size": 64.5}}, "model.hidden_size = 64.5: expected a whole number"),
        ({"model": {"hidden_size": True}}, "model.hidden_size = true: expected a whole number"),
        ({"model": {"hidden_size": 65}}, "model.hidden_size = 65: expected a multiple of 8"),
        ({"model": {"hiden_size": 64}}, "model.hiden_size: unknown key (nearest: hidden_size)"),
        ({"model": {"hidden_size": 64, "zzz": 1}}, "model.zzz: unknown key: expected one of hidden_size, pattern"),
        ({"lr": 1}, "lr: unknown key (nearest: optimizer.lr)"),
        ({"model": {}, "hidden_size": 8}, "hidden_size: unknown key (nearest: model.hidden_size)"),
        ({"Name": "x"}, "Name: unknown key (nearest: name)"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr = 0: expected more than 0"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr = .inf: expected a finite number"),
        ({"optimizer": {"lr": 11}}, "optimizer.lr = 11: far too high"),
        ({"optimizer": {"momentum": 1}}, "optimizer.momentum = 1: expected less than 1"),
        ({"optimizer": {"betas": 0.9}}, "optimizer.betas = 0.9: expected a list of two numbers"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas = [0.9]: expected a list of two numbers"),
        ({"optimizer": {"betas": [1, 2, 3]}}, "optimizer.betas = [1, 2, 3]: expected a list of two numbers"),
        ({"optimizer": {"betas": [1, "b"]}}, "optimizer.betas[1] = 'b': expected a number"),
        ({"schedule": {}}, "schedule.type: required key is missing: expected one of cosine, constant, flat"),
        (
            {"schedule": {"type": "cosin"}},
            "schedule.type = 'cosin': expected one of cosine, constant, flat (nearest: cosine)",
        ),
        ({"schedule": {"type": "cosine", "warmup": -1}}, "schedule.warmup = -1: expected at least 0"),
        ({"schedule": {"type": "flat", "warmup": 1}}, "schedule.warmup: unknown key: expected type"),
        ({"schedule": "cosine"}, "schedule = 'cosine': expected a mapping"),
        ({"stages": {}}, "stages = {}: expected a list of mappings"),
        ({"stages": [{}, {"step": 3}]}, "stages[1].step: unknown key (nearest: steps)"),
        ({"seeds": "a"}, "seeds = 'a': expected a whole number or a list of whole numbers"),
        ({"seeds": [1, "a"]}, "seeds[1] = 'a': expected a whole number"),
        ({"clip": "aut"}, "clip = 'aut': expected a number or auto"),
        ({"tags": {"a": "b"}}, "tags.a = 'b': expected a whole number"),
        ({"folder": 3}, "folder = 3: expected text or null"),
        ({"folder": ["x" * 100]}, f"folder = [{'x' * 56}...: expected text or null"),
        (
            {"model": {"hidden_size": 64, "pattern": "2*atn"}},
            "model.pattern: unknown block 'atn' at column 3: expected one of attn, mlp (nearest: attn)\n  2*atn\n    ^",
        ),
    ],
)
def test_one_line_says_what_is_wrong_and_what_was_expected(changes, line):
    assert refusal(**changes) == line


@pytest.mark.parametrize("nothing", [None, 3, [], "text"])
def test_a_config_is_a_mapping(nothing):
    with pytest.raises(UserError, match=r"^expected a mapping of keys at the top level"):
        build(nothing, Run)


def test_several_problems_have_a_line_each_and_the_rest_are_counted():
    assert refusal(name=1, seeds="x").split("\n") == [
        "name = 1: expected text",
        "seeds = 'x': expected a whole number or a list of whole numbers",
    ]
    lines = refusal(tags={str(n): "x" for n in range(8)}).split("\n")
    assert len(lines) == 6
    assert lines[-1] == "and 3 more"


def test_lines_end_with_who_set_the_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/low.yaml").write_text("model: {hidden_size: 65, pattern: 3*atn}\n")
    (tmp_path / "run.yaml").write_text("base: sub/low.yaml\nname: x\noptimizer: {lr: high}\n")
    with pytest.raises(UserError) as caught:
        load("run.yaml", ["seeds=a", "optimizer.beta=1"], Run)
    assert str(caught.value).split("\n") == [
        "model.hidden_size = 65: expected a multiple of 8 (in sub/low.yaml)",
        "optimizer.lr = 'high': expected a number (in run.yaml)",
        "optimizer.beta: unknown key (nearest: betas) (in an override)",
        "seeds = 'a': expected a whole number or a list of whole numbers (in an override)",
    ]
    with pytest.raises(UserError) as caught:
        load("run.yaml", ["optimizer.lr=1e-3", "model.hidden_size=64"], Run)
    assert str(caught.value).split("\n") == [
        "model.pattern: unknown block 'atn' at column 3: expected one of attn, mlp (nearest: attn) (in sub/low.yaml)",
        "  3*atn",
        "    ^",
    ]
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    with pytest.raises(UserError, match=r"^required keys are missing: name, model \(in empty.yaml\)$"):
        load("empty.yaml", [], Run)


def test_a_file_with_overrides_becomes_a_config(tmp_path):
    (tmp_path / "run.yaml").write_text("name: x\nmodel: {hidden_size: 64}\noptimizer: {lr: 1e-3}\n")
    config = load(tmp_path / "run.yaml", ["optimizer.betas=[0, 1]", "schedule={type: flat}"], Run)
    assert config == Run(
        name="x",
        model=Model(hidden_size=64),
        optimizer=Optimizer(lr=1e-3, betas=(0.0, 1.0)),
        schedule=Constant(type="flat"),
    )


def test_the_dump_is_complete_and_loads_as_the_same_config():
    config = build({**GOOD, "stages": [{}, {"steps": 3}], "clip": 2.5e-7, "world_size": 1}, Run)
    text = dump(config)
    assert text == (
        "name: x\nmodel:\n  hidden_size: 64\n  pattern: attn\noptimizer:\n  lr: 0.001\n  betas: [0.9, 0.95]\n"
        "  momentum: 0.5\nschedule:\n  type: cosine\n  warmup: 0\nstages:\n  - steps: 1\n  - steps: 3\nseeds: 0\n"
        "clip: 2.5e-07\ntags: {}\nfolder: null\n"
    )
    assert build(yaml_text.parse(text), Run) == config
