"""`hybridtron search transfer`: from a search's folder to a page, through an interruption."""

import json
import shutil

import pytest
import yaml

from hybridtron import composer
from hybridtron.cli.main import main
from hybridtron.config.compose import compose
from hybridtron.errors import UserError
from tests.conftest import TINY


@pytest.fixture(scope="module")
def search_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "search"
    config = {
        "name": "small",
        "folder": str(folder),
        "evaluations": 7,
        "seeds": [0, 1],
        "space": {"blocks": ["attn", "mlp"], "layers": 3, "at_least": {"mlp": 1}},
        "evaluator": {"type": "function", "noise": 0.02},
        "engine": {"type": "exhaustive"},
    }
    composer.search(config)
    return folder


@pytest.fixture
def searched(search_folder, tmp_path):
    return shutil.copytree(search_folder, tmp_path / "search")


@pytest.fixture
def target(tmp_path, corpus):
    blocks = {name: TINY["model"]["blocks"][name] for name in ("attn", "mlp")}
    config = {
        **TINY,
        "model": {"hidden_size": 32, "blocks": blocks, "pattern": "2*(attn mlp)"},
        "data": {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")},
        "train": {**TINY["train"], "steps": 2},
        "schedule": {"warmup_steps": 1},
        "sizes": {"tiny": {}, "larger": {"model": {"pattern": "3*(attn mlp)"}}},
    }
    file = tmp_path / "target.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def rows(folder, kind="result"):
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


def test_an_interrupted_study_goes_on_and_ends_with_ranks_a_page_and_numbers(searched, target, tmp_path, capsys):
    out = tmp_path / "study"
    given = {"sizes": ["tiny", "larger"], "out": out, "patterns": 5, "baselines": ["2*attn mlp"]}

    def interrupt(results, total):
        if len(results) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        composer.search_transfer(searched, target, "stack", on_progress=interrupt, **given)
    first = rows(out)
    assert len(first) == 3
    command = ["search", "transfer", str(searched), "--target", str(target), "--method", "stack", "--out", str(out)]
    command += ["--baselines", "2*attn mlp", "--sizes", "tiny", "larger"]
    assert main([*command, "--report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "transfer.json").read_text())
    assert rows(out)[:3] == first
    tiny, larger = told["sizes"]
    count = len(tiny["patterns"])
    assert count in (5, 6)  # the baseline may be among the chosen
    assert len(rows(out)) == len({(r["size"], r["pattern"], r["seed"]) for r in rows(out)}) == 2 * 2 * count
    for size in (tiny, larger):
        assert size["compared"] == count
        for one in size["patterns"]:
            assert abs(one["parameters"] / size["target_parameters"] - 1) <= 0.01
            assert one["loss"] == pytest.approx(sum(one["losses"].values()) / 2)
        assert -1 <= size["spearman"] <= 1
        assert 0 < size["p"] <= 1
        assert 0 <= size["noise_ceiling"] <= 1
        assert len(size["verdict"]) == 3
    page = (out / "report.html").read_text()
    assert "Noise ceiling" in page
    assert "data:image/png" in page
    assert main([*command, "--seeds", "0", "1", "--report"]) == 0
    assert "Spearman's correlation of score and negative loss" in capsys.readouterr().out


def test_overrides_may_follow_lists_and_another_study_is_refused(searched, target, tmp_path, capsys):
    command = ["search", "transfer", str(searched), "--target", str(target), "--method", "stretch", "--patterns", "2"]
    command += ["--sizes", "tiny"]
    assert main([*command, "--seeds", "3", "train.steps=1"]) == 0
    printed = capsys.readouterr()
    assert "Not evidence: at least 5 patterns" in printed.out
    assert "transfer: 2/2 trained" in printed.err
    assert {row["seed"] for row in rows(searched / "transfer")} == {3}
    assert main([*command, "--seeds", "3"]) == 2
    assert "train.steps is 1 there, 2 here; expected the same, or another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "search folder nowhere: holds no search"),
        (["SEARCH", "--patterns", "9"], "--patterns = 9: expected 2 to 7"),
        (["SEARCH", "--seeds", "a"], "--seeds = a: expected whole numbers"),
        (["SEARCH", "--sizes", "8b"], "8b"),
        (["SEARCH", "--tolerance", "0.00001", "--sizes", "tiny"], "no value comes within 1e-05 of"),
        (["SEARCH", "--sizes", "tiny", "data.valid=null"], "has no data.valid; expected held-out tokens"),
        (["SEARCH", "--workers", "0"], "--workers = 0: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(searched, target, capsys, arguments, message):
    words = [str(searched) if word == "SEARCH" else word for word in arguments]
    assert main(["search", "transfer", *words, "--target", str(target), "--method", "stack"]) == 2
    assert message in capsys.readouterr().err
    assert not (searched / "transfer").exists()


def test_sizes_of_a_target_without_a_table_of_them_are_refused(searched, target):
    without = {**compose(target, ["size=tiny"]).mapping}
    with pytest.raises(UserError, match="sizes = tiny: the target has no table of sizes; expected none"):
        composer.search_transfer(searched, without, "stack", sizes=["tiny"])
    assert not (searched / "transfer").exists()


def test_unknown_names_are_refused_in_python(searched, target):
    with pytest.raises(UserError, match="method 'stacked': expected"):
        composer.search_transfer(searched, target, "stacked")
    with pytest.raises(UserError, match="of 'params': expected one of parameters"):
        composer.search_transfer(searched, target, "stack", of="params")


def test_several_workers_share_a_study(searched, target, hybridtron):
    done = hybridtron(
        "search", "transfer", searched, "--target", target, "--method", "stack", "--patterns", "2", "--workers", "2",
        "--sizes", "tiny", "train.steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Spearman") == 1
    found = rows(searched / "transfer")
    assert len(found) == len({(row["pattern"], row["seed"]) for row in found}) == 4
