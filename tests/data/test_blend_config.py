"""What data.train and data.valid may be, and what is said of anything else."""

import pytest

from hybridtron.config.load import build, load
from hybridtron.config.schema import Strict
from hybridtron.data.config import DataConfig
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig


class Holder(Strict):
    data: DataConfig


def section(train, **more):
    return build({"data": {"seq_len": 8, "train": train, **more}}, Holder).data


TWO = [{"path": "a/train", "weight": 0.7}, {"path": "b/train", "weight": 2}]


@pytest.mark.parametrize("flat", [[0.7, "a/train", 2, "b/train"], ["0.7", "a/train", "2", "b/train"]])
def test_megatrons_form_is_the_same_thing(flat):
    assert section(flat) == section(TWO)
    assert section("c", valid=flat).valid == section(TWO).train


def test_an_override_of_the_command_line(tiny):
    config = load(tiny, ["data.train=[0.7, a/train, 0.3, stdlib]", "data.valid=[{path: a/valid}]"], RunConfig)
    assert [(source.path, source.weight, source.name) for source in config.data.train_sources] == [
        ("a/train", 0.7, "a"),
        ("stdlib", 0.3, "stdlib"),
    ]
    assert [source.weight for source in config.data.valid_sources] == [1]
    absolute = config.with_absolute_paths().data
    assert absolute.train[0].path.endswith("/a/train")
    assert absolute.train[1].path == "stdlib"
    assert build(config.model_dump(mode="json", serialize_as_any=True), RunConfig) == config


def test_names_are_the_last_part_that_says_something_and_unique():
    paths = ["x/web/train", "y/web/train", "books", "/train", "x/Ünï code/valid", "web-2"]
    given = [{"path": path, "weight": 1} for path in paths]
    names = [source.name for source in section([*given, {"path": "c", "weight": 1, "name": "web"}]).train]
    assert names == ["web-2", "web-3", "books", "source", "n-code", "web-2-2", "web"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "data.train = '': expected text of at least 1 characters"),
        ([], "data.train = []: expected at least one source"),
        (3, "data.train = 3: expected text or a list of mappings"),
        ([TWO[0], {"path": "b", "weight": -1}], "data.train[1].weight = -1: expected more than 0"),
        ([0.7, "a", 0, "b"], "data.train[1].weight = 0.0: expected more than 0"),
        ([TWO[0], {"path": "b"}], "data.train[1].weight = null: expected more than 0, which each of several"),
        ([TWO[0], {"weight": 1}], "data.train[1].path: required key is missing"),
        ([TWO[0], {**TWO[0], "weight": 1}], "data.train[1].path = 'a/train': expected a path that no other source has"),
        ([TWO[0], {**TWO[1], "name": "a b"}], "data.train[1].name = 'a b': expected letters, digits"),
        ([TWO[0], {"path": "b", "weight": 1e-7}], "data.train[1].weight = 1.0e-07: expected at least 1e-06 of the sum"),
        ([TWO[0], {"path": "b", "wieght": 1}], "data.train[1].wieght: unknown key (nearest: weight)"),
        ([1, "a", TWO[1]], "data.train[2] = {path: b/train, weight: 2}: expected weights and paths in turns"),
        ([1, "a", 2], "data.train[3] = null: expected the path of the source with weight 2"),
        (["a", "b"], "data.train[0] = 'a': expected a weight, which the path follows"),
        ([1, 2], "data.train[1] = 2: expected the path of the source with weight 1"),
        (["nan", "a"], "data.train[0].weight = .nan: expected a finite number"),
    ],
)  # fmt: skip
def test_what_is_refused(train, message):
    with pytest.raises(UserError) as error:
        section(train)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def stage(step, **weights):
    return {"start_step": step, "weights": weights}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage(5, c=1)], "data.stages[0].weights.c = 1.0: expected a source of data.train: one of a, b"),
        ([stage(5, a=1, b=0)], "data.stages[0].weights.b = 0.0: expected more than 0"),
        ([stage(5)], "data.stages[0].weights = {}: expected a length of at least 1"),
        ([stage(5, a=1), stage(5, b=1)], "data.stages[1].start_step = 5: expected a later step than the stage before"),
        ([stage(-1, a=1)], "data.stages[0].start_step = -1: expected at least 0"),
        ([{"start": 1, "weights": {"a": 1}}], "data.stages[0].start: unknown key (nearest: start_step)"),
    ],
)
def test_what_is_refused_of_stages(stages, message):
    with pytest.raises(UserError) as error:
        section(TWO, stages=stages)
    assert str(error.value).partition("\n")[0].startswith(message)


def test_stages_need_several_sources():
    with pytest.raises(UserError, match=r"^data.stages = .*: expected none without several sources$"):
        section("a", stages=[stage(1, a=1)])
