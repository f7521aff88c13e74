"""`hybridtron.composer.search` and `scale`, as a Python program calls them."""

from pathlib import Path

import pytest
import yaml

from hybridtron import composer
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve

LLAMA = Path(__file__).parents[2] / "configs/models/llama3_2.yaml"


def test_a_search_from_a_dict_and_from_its_file_is_one_search(tmp_path, capsys):
    config = {
        "name": "small",
        "folder": str(tmp_path / "s"),
        "evaluations": 8,
        "space": {"blocks": ["attn", "mlp"], "layers": 3},
        "evaluator": {"type": "function"},
        "engine": {"type": "exhaustive"},
    }
    seen = []
    outcome = composer.search(config, "evaluations=4", on_progress=lambda progress: seen.append(progress))
    assert len(outcome.observations) == 4
    assert [len(progress.steps[-1].finished) for progress in seen] == [0, 1, 2, 3, 4]
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(config))
    assert len(composer.search(file).observations) == 8
    assert capsys.readouterr() == ("", "")
    assert str(outcome).startswith("4 of 8 patterns evaluated")


def test_a_function_of_misspelt_blocks_warns(tmp_path, caplog):
    config = {
        "name": "small",
        "folder": str(tmp_path / "s"),
        "evaluations": 1,
        "space": {"blocks": ["attn", "mpl", "X"], "layers": 2},
        "evaluator": {"type": "function"},
        "engine": {"type": "random"},
    }
    composer.search(config)
    assert [record.getMessage() for record in caplog.records] == [
        "space.blocks: mpl is taken as it is, since a function needs no layers; nearest: mlp"
    ]


def test_scale_takes_a_file_with_overrides_a_dict_and_a_config():
    run = resolve(load(LLAMA, ["size=1b"], RunConfig))
    scaled = composer.scale("2A+4M", LLAMA, "stack", "up", overrides=["size=1b"])
    assert scaled.config.model.pattern == "4*(2*attn 4*mlp) attn 2*mlp"
    mapping = run.model_dump(mode="json", serialize_as_any=True)
    for target in (run, mapping):
        assert composer.scale("2*attn 4*mlp", target, "stack", "up").as_json() == scaled.as_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "strech"}, r"method 'strech': expected .*nearest: stretch"),
        ({"round": "down"}, r"round 'down': expected one of up, parameters, flops"),
        ({"dialect": "klingon"}, r"dialect 'klingon': expected"),
        ({"pattern": "AAMMXX"}, r"^pattern 'AAMMXX': (?!pattern).*X"),
        ({"pattern": "40*attn 40*mlp"}, r"is smaller than the pattern"),
    ],
)
def test_errors_of_scale_name_parameters(arguments, message):
    with pytest.raises(UserError, match=message):
        composer.scale(**{"pattern": "AAMMMM", "target": LLAMA, "overrides": ["size=1b"], **arguments})
