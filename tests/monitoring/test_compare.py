"""Several runs beside each other: real ones, and folders at other states."""

from __future__ import annotations

import fcntl
import json
import math
from html.parser import HTMLParser

import pytest
import yaml

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.monitoring.compare import comparison as compared
from hybridtron.monitoring.compare.comparison import read_comparison
from hybridtron.monitoring.compare.noise import noise_of
from hybridtron.monitoring.compare.plots import draw
from hybridtron.monitoring.compare.run import smooth
from hybridtron.monitoring.compare.settings import differences
from tests.conftest import TINY
from tests.monitoring.folders import end_run, write_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """Two runs of one name in two folders; the second has another learning rate, fewer layers, and blocks it uses."""
    folder = tmp_path_factory.mktemp("trained")
    for name, overrides in {"first": [], "second": ["optimizer.lr=1e-4", "model.pattern=attn ffn"]}.items():
        data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
        train = {**TINY["train"], "steps": 8, "eval_every": 2}
        ht.train({**TINY, "folder": str(folder / name), "data": data, "train": train}, *overrides)
    return folder


@pytest.fixture
def both(trained):
    return ht.compare(trained / "first", trained / "second")


class Page(HTMLParser):
    """The tables of a page as lists of rows of cells, its pictures, and what else it fetches."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.pictures, self.fetched, self.cell = [], 0, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [
            value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")
        ]
        self.pictures += tag == "img"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data


def test_runs_of_one_name_are_told_apart_by_folder(both):
    assert [run.name for run in both.runs] == ["first", "second"]


def test_only_settings_that_differ_are_listed(both):
    differing = {key: value for key, value in both.differences.items() if not key.startswith("environment.")}
    mamba = {"type": "mamba2", "head_dim": 16, "state_dim": 8, "chunk_size": 16}
    mlp = {"type": "swiglu", "ffn_hidden_size": 64}
    assert differing == {
        "model.blocks.mamba": [mamba, None],
        "model.blocks.mlp": [mlp, None],
        "model.pattern": ["mamba mlp attn ffn", "attn ffn"],
        "optimizer.lr": [3e-3, 1e-4],
    }


def test_numbers_are_those_of_the_run_folders(both, trained):
    for run in both.as_json()["runs"]:
        folder = trained / run["name"]
        summary = json.loads((folder / "summary.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        account = ht.describe(folder)
        assert run["parameters"] == {"total": account.total, "active": account.active}
        assert (run["state"], run["step"], run["steps"], run["tokens"]) == ("finished", 8, 8, summary["tokens"])
        assert run["flops"] == 3 * account.flops_forward / 32 * summary["tokens"]
        for key in ("valid_loss", "valid_bits_per_byte"):
            assert run[key] == pytest.approx(summary[key], rel=1e-12)
        assert run["train_loss"] == summary["loss"]
        assert run["hours"] * 3600 == pytest.approx(sum(128 / row["tokens_per_s"] for row in rows))
        assert run["tokens_per_s"] == pytest.approx(run["tokens"] / run["hours"] / 3600)
        held_out = run["curves"]["valid_loss"]
        assert held_out["loss"] == [row["valid_loss"] for row in rows if "valid_loss" in row]
        assert held_out["steps"] == [2, 4, 6, 8]
        assert held_out["flops"][-1] == run["flops"]
        assert run["valid_loss_noise"] == noise_of(held_out["tokens"], held_out["loss"])


def test_the_page_holds_tables_and_a_picture_for_each_axis(trained, tmp_path, capsys):
    code = main(["compare", str(trained / "first"), str(trained / "second"), "--out", str(tmp_path / "report")])
    printed = capsys.readouterr().out
    assert code == 0
    assert "optimizer.lr" in printed
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert (page.pictures, page.fetched) == (4, [])
    losses, costs, settings, folders = page.tables
    assert [row[0] for row in losses[1:]] == [row[0] for row in costs[1:]] == ["first", "second"]
    assert losses[1][losses[0].index("held-out loss")] == f"{ht.compare(trained / 'first').runs[0].valid_loss:.4f}"
    assert ["optimizer.lr", "0.003", "0.0001"] in settings
    assert "seed" not in [row[0] for row in settings]
    assert folders[1][1] == str(trained / "first")
    for axis in ("tokens", "steps", "flops", "hours"):
        assert (tmp_path / "report" / f"loss-{axis}.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "report" / "result.json").read_text())
    main(["compare", str(trained / "first"), str(trained / "second"), "--json"])
    assert json.loads(capsys.readouterr().out) == written
    assert written["differences"]["optimizer.lr"] == {"first": 3e-3, "second": 1e-4}


def test_a_folder_that_is_no_run_is_one_line(trained, tmp_path, capsys):
    run = trained / "first"
    for bad, message in [
        (tmp_path / "none", "no such folder; expected a run folder"),
        (trained, f"no run folder; expected one of those in it, such as {run}"),
    ]:
        assert main(["compare", str(run), str(bad), "--out", str(tmp_path / "report")]) == 2
        assert capsys.readouterr().err == f"hybridtron: error: {bad}: {message}\n"
    (tmp_path / "mine").write_text("")
    assert main(["compare", str(run), "--out", str(tmp_path)]) == 2
    assert "holds mine" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_runs_in_training_and_failed_ones_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(compared, "queued_jobs", dict)
    running, failed, empty = (write_run(tmp_path / name, rows=rows) for name, rows in (("a", 40), ("b", 20), ("c", 0)))
    end_run(failed, "failed", "rank 3 was killed (signal 9)", step=20)
    (running / "config.yaml").write_text("name: a\ntrain: {steps: 50}\n")
    with (running / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        both = read_comparison([running, failed, empty, running])
    assert [(run.name, run.state, run.step) for run in both.runs[:2]] == [("a", "running", 40), ("b", "failed", 20)]
    assert both.runs[1].notes == ["rank 3 was killed (signal 9)"]
    assert both.differences == {"train.steps": [50, 100, 100]}
    assert both.runs[0].tokens_per_s == 32
    assert both.best is None
    assert set(draw(both)) == {"tokens", "steps", "hours"}  # nothing is known of FLOPs
    assert "train.steps" in str(both)


def with_held_out(folder, losses, tokenizer="x", bits_per_nat=0.5):
    """A finished run whose held-out loss was computed every 10 of 100 steps."""
    write_run(folder, rows=100)
    end_run(folder, "finished", step=100)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, loss in zip(rows[9::10], losses, strict=True):
        row |= {"valid_loss": loss, "valid_bits_per_byte": loss * bits_per_nat}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "environment.json").write_text(json.dumps({"tokens": {"data.tokenizer": tokenizer}}))
    return folder


FALLING = [4 - 0.1 * k + 0.02 * (-1) ** k for k in range(10)]


def test_noise_is_the_scatter_around_a_falling_line():
    tokens = [float(k) for k in range(10)]
    assert noise_of(tokens, [4 - 0.1 * k for k in range(10)]) == pytest.approx(0, abs=1e-12)
    assert noise_of(tokens, FALLING) == pytest.approx(0.0234, abs=5e-4)  # sqrt(6/4) of 0.02, less what a line takes
    assert noise_of(tokens[:3], FALLING[:3]) is None
    bent = [3.5563, 2.6794, 2.3224, 2.1129, 1.9887, 1.9490]  # the losses of a short run bend, which is no noise
    assert noise_of([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], bent) == pytest.approx(0.0134, abs=5e-4)
    assert noise_of([10.0, 20.0, 30.0, 40.0], bent[:4]) == pytest.approx(0.2432, abs=5e-4)  # four do not tell


def test_a_difference_smaller_than_the_noise_is_named(tmp_path):
    near, far = [loss + 0.03 for loss in FALLING], [loss + 0.1 for loss in FALLING]
    for name, losses in {"best": FALLING, "near": near, "far": far}.items():
        with_held_out(tmp_path / name, losses)
    found = ht.compare(*(tmp_path / name for name in ("near", "far", "best")))
    assert found.best.name == "best"
    assert [found.is_within_noise(run) for run in found.runs] == [True, False, None]
    assert [run["within_noise"] for run in found.as_json()["runs"]] == [True, False, None]
    assert "+0.0300, within the noise" in str(found)
    assert "near is above it by less than twice the noise" in str(found)


def test_runs_of_different_tokenizers_are_compared_in_bits_per_byte(tmp_path):
    with_held_out(tmp_path / "a", FALLING, "x", 0.5)
    with_held_out(tmp_path / "b", [loss - 1 for loss in FALLING], "y", 1.0)
    found = ht.compare(tmp_path / "a", tmp_path / "b")
    assert found.as_json()["measure"] == "bits per byte"
    assert found.best.name == "a"
    assert found.above_best(found.runs[1]) == pytest.approx(FALLING[-1] - 1 - FALLING[-1] / 2)
    assert found.noise(found.runs[0]) == found.runs[0].valid_noise / 2
    assert "not comparable" in found.warnings[0]
    assert "bits per byte are those of a" in str(found)


def test_paths_that_hold_the_same_tokens_do_not_differ(tmp_path):
    for name in ("a", "b"):
        with_held_out(tmp_path / name, FALLING)
        config = {"name": name, "train": {"steps": 100}, "data": {"tokenizer": f"/{name}", "train": f"/{name}"}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    assert ht.compare(tmp_path / "a", tmp_path / "b").differences == {"data.train": ["/a", "/b"]}


def test_a_run_that_averages_its_weights_has_a_loss_of_the_average(tmp_path):
    plain, averaged = (with_held_out(tmp_path / name, FALLING) for name in ("plain", "averaged"))
    assert "average of weights" not in str(ht.compare(plain))
    with (averaged / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 101, "tokens": 6464, "loss": 4.0, "ema_valid_loss": 2.875}) + "\n")
    found = ht.compare(plain, averaged)
    assert [run["ema_valid_loss"] for run in found.as_json()["runs"]] == [None, 2.875]
    assert "with the average of weights" in str(found)
    assert "2.8750" in str(found)


def test_sources_of_a_blend_are_compared_one_by_one(tmp_path):
    for name, weight in {"a": 0.5, "b": 0.75}.items():
        file = with_held_out(tmp_path / name, FALLING) / "metrics.jsonl"
        last = json.loads(file.read_text().splitlines()[-1]) | {"valid_loss/web": 2.0 + weight, "valid_loss/code": 1.5}
        file.write_text(json.dumps(last) + "\n")
        train = [{"path": f"/{name}/web", "weight": weight}, {"path": "/code", "weight": 1 - weight}]
        config = {"name": name, "train": {"steps": 100}, "data": {"train": train}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        tokens = {"data.train[0].path": "the same", "data.train[1].path": "other", "data.tokenizer": "x"}
        (tmp_path / name / "environment.json").write_text(json.dumps({"tokens": tokens}))
    found = ht.compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    assert found.differences == {"data.train[0].weight": [0.5, 0.75], "data.train[1].weight": [0.5, 0.25]}
    assert [run["valid_loss_by_source"] for run in found.as_json()["runs"]] == [
        {"web": 2.5, "code": 1.5},
        {"web": 2.75, "code": 1.5},
    ]
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert [["run", "web", "code"], ["a", "2.5000", "1.5000"], ["b", "2.7500", "1.5000"]] in page.tables


def test_an_empty_list_or_mapping_has_no_row_beside_those_of_its_parts():
    empty = {"data.stages": [], "optimizer.clip_groups": {}}
    full = {"data.stages[0].start_step": 3, "optimizer.clip_groups.attn": 0.5}
    assert differences([empty, full], [{}, {}], [{}, {}]) == {key: [None, value] for key, value in full.items()}


def test_a_smoothed_curve_keeps_a_line_and_its_ends():
    line = [5 - 0.001 * k for k in range(3001)]
    found = smooth({"steps": [float(k) for k in range(3001)], "loss": line})
    assert len(found["loss"]) <= 1001
    assert found["steps"][-1] == 3000
    assert all(math.isclose(loss, 5 - 0.001 * step) for step, loss in zip(found["steps"], found["loss"], strict=True))
