"""`hybridtron search`: from a config to a page, through kills, with company."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import prepare
from hybridtron.config.load import load
from hybridtron.errors import UserError
from tests import warm
from tests.composer.small import MAD, SEARCH, config
from tests.conftest import command, environment

MODELS = Path(__file__).parents[3] / "configs/models"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "search"


def rows(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


def once(results: list[dict]) -> bool:
    return max(Counter((row["pattern"], row["seed"]) for row in results).values()) == 1


def test_a_search_ends_with_a_page_and_its_numbers(folder):
    outcome, page = run_search(config(folder))
    assert len(rows(folder, "result")) == 10
    assert outcome.progress.is_complete
    text = page.read_text()
    for part in (
        "What each rule would return",
        "N_0",
        "best single",
        "Vote per position",
        "data:image/png",
        "16 patterns",
    ):
        assert part in text
    assert "http" not in text.replace("http-equiv", "")
    result = json.loads((folder / "result.json").read_text())
    assert result["evaluated"] == 10
    assert result["best"][0]["score"] == max(row["score"] for row in rows(folder, "result"))
    assert [rule["rule"] for rule in result["rules"]] == ["N_0", "N_1", "N_all", "best single"]
    assert len(result["votes"]) == 4
    for name in ("votes.png", "regret.png", "surrogate.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_finished_search_evaluates_nothing_more(folder):
    run_search(config(folder))
    before = (folder / "evaluations.jsonl").read_bytes()
    run_search(config(folder))
    assert (folder / "evaluations.jsonl").read_bytes() == before


def test_programs_read_the_outcome_and_people_the_course(folder, tmp_path, capsys):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**SEARCH, "folder": str(folder)}))
    assert main(["search", str(file), "evaluations=3", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((folder / "result.json").read_text())
    assert "small: 3/3 evaluated  best" in printed.err
    assert main(["search", str(file), "evaluations=4"]) == 0
    printed = capsys.readouterr()
    assert "4 of 16 patterns evaluated" in printed.out
    assert "best single" in printed.out


def test_more_evaluations_or_another_engine_go_on_with_what_is_there(folder):
    run_search(config(folder, evaluations=4))
    first = rows(folder, "result")
    run_search(config(folder, evaluations=8, engine={"type": "evolution", "population": 3}))
    assert rows(folder, "result")[:4] == first
    assert len(rows(folder, "result")) == 8
    assert once(rows(folder, "result"))


def test_every_pattern_gets_every_seed_and_the_mean_counts(folder):
    noisy = {"type": "function", "instance": 1, "noise": 0.2}
    outcome, _ = run_search(config(folder, evaluator=noisy, seeds=[3, 4], evaluations=5))
    results = rows(folder, "result")
    assert Counter(row["seed"] for row in results) == {3: 5, 4: 5}
    best = max(outcome.observations, key=lambda o: o.score)
    own = [row["score"] for row in results if row["pattern"].split() == list(outcome.step.space.names(best.pattern))]
    assert best.score == pytest.approx(sum(own) / 2)
    assert best.error == pytest.approx(np.std(own, ddof=1) / 2**0.5)


@pytest.mark.parametrize("method", ["end_incremental", "middle_incremental"])
def test_incremental_steps_build_on_what_was_found(folder, method):
    methodology = {"type": method, "step_layers": 2, "keep": "best"}
    outcome, page = run_search(config(folder, methodology=methodology, engine={"type": "exhaustive"}, evaluations=9))
    small, large = outcome.progress.steps
    assert [step.space.layers for step in (small, large)] == [2, 4]
    assert len(small.finished) == len(large.finished) == 4
    best = max(small.finished, key=lambda o: o.score).pattern
    kept = [o.pattern[:2] if method == "end_incremental" else o.pattern[:1] + o.pattern[3:] for o in large.finished]
    assert set(kept) == {best}
    assert "Steps" in page.read_text()


def test_a_torn_line_is_removed_and_a_damaged_one_named(folder):
    run_search(config(folder, evaluations=3))
    file = folder / "evaluations.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"row": "result", "patt')
    run_search(config(folder, evaluations=4))
    assert file.read_bytes().startswith(whole)
    assert len(rows(folder, "result")) == 4
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"%%%\n", *lines[2:]]))
    with pytest.raises(UserError, match=r"evaluations\.jsonl:3: damaged line"):
        run_search(config(folder))


def test_another_search_in_the_folder_is_refused_and_told_apart(folder):
    run_search(config(folder, evaluations=2))
    before = (folder / "evaluations.jsonl").read_bytes()
    with pytest.raises(UserError) as refusal:
        run_search(config(folder, space={"blocks": ["attn", "mlp", "mamba"], "layers": 4}))
    for word in ("holds another search", "space.blocks", '["attn", "mlp"] there', "another folder"):
        assert word in str(refusal.value)
    with pytest.raises(UserError, match=r"evaluator\.instance is 1 there, 2 here"):
        run_search(config(folder, evaluator={"type": "function", "instance": 2}))
    assert (folder / "evaluations.jsonl").read_bytes() == before
    assert list((folder / "workers").iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run_search(config(folder))
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_claims_of_the_living_are_kept_and_those_of_the_dead_are_open(folder):
    search = prepare(config(folder))
    first, second = (Store(folder, search.identity()) for _ in range(2))
    with first.locked():
        first.append({"row": "propose", "step": 0, "patterns": ["attn mlp mlp mlp"]})
        first.append({"row": "claim", "pattern": "attn mlp mlp mlp", "seed": 0, "worker": first.worker})
    assert second.is_alive(first.worker)
    first.close()
    assert not second.is_alive(first.worker)
    second.close()


def train_search(tmp_path: Path, tiny: Path, folder: Path, **changes) -> Path:
    """A search whose evaluations are real training runs of a second or so."""
    file = tmp_path / "search.yaml"
    evaluator = {"type": "train", "run": str(tiny), "overrides": ["train.steps=6", "train.log_every=1"]}
    mapping = {**SEARCH, "folder": str(folder), "evaluator": evaluator, **changes}
    file.write_text(yaml.safe_dump(mapping, sort_keys=False))
    return file


def test_two_workers_and_a_kill_lose_and_repeat_nothing(tmp_path, tiny, folder):
    """One worker is killed in the middle of an evaluation; another that worked beside it does what is left."""
    file = train_search(tmp_path, tiny, folder, evaluations=5)

    def start() -> subprocess.Popen[str]:
        return warm.Popen(
            command("search", file), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    workers = [start(), start()]
    victim = workers[0]

    def of_victim(kind: str) -> list[dict]:
        return [row for row in rows(folder, kind) if f"-{victim.pid}-" in row["worker"]]

    assert victim.stderr is not None
    try:
        for line in victim.stderr:  # told while it holds the lock, before it takes something
            if "evaluated" not in line:
                continue
            with (folder / "store.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # it has taken it, and can record nothing now
                if len(of_victim("claim")) > len(of_victim("result")):
                    os.kill(victim.pid, signal.SIGKILL)
                    victim.wait()
                    at_the_kill = rows(folder, "result")
                    break
        else:
            pytest.fail(f"the victim ended by itself: {victim.wait()}")
        survivor = workers[1].communicate(timeout=250)
    finally:
        for worker in workers:
            worker.kill()
    assert workers[1].returncode == 0, survivor
    results = rows(folder, "result")
    assert results[: len(at_the_kill)] == at_the_kill
    assert len(results) == 5
    assert once(results)
    lost = of_victim("claim")[-1]
    (again,) = (row for row in results if row["pattern"] == lost["pattern"])
    assert f"-{victim.pid}-" not in again["worker"]
    assert (folder / "report.html").is_file()


def test_short_training_runs_score_by_held_out_loss_and_repeat_to_the_bit(tmp_path, tiny, folder):
    file = train_search(tmp_path, tiny, folder, evaluations=2, seeds=[5])
    assert main(["search", str(file)]) == 0
    first = rows(folder, "result")
    assert all(row["score"] == -row["valid_loss"] for row in first)
    assert all(3 < row["valid_loss"] < 6 for row in first)
    assert first[0]["valid_loss"] != first[1]["valid_loss"]
    assert main(["search", str(file), f"folder={folder}-again"]) == 0
    again = rows(Path(f"{folder}-again"), "result")
    assert [(row["pattern"], row["score"]) for row in again] == [(row["pattern"], row["score"]) for row in first]
    assert not (tiny.parent / "run").exists()


def test_unknown_blocks_are_refused_before_anything_is_written(tmp_path, tiny, folder, capsys):
    file = train_search(tmp_path, tiny, folder, space={"blocks": ["attn", "mpl"], "layers": 4})
    assert main(["search", str(file)]) == 2
    message = capsys.readouterr().err
    assert "has no block 'mpl'" in message
    assert "nearest: mlp" in message
    assert not folder.exists()


def test_mad_accuracy_is_a_score(folder):
    outcome, _ = run_search(config(folder, evaluator=MAD, evaluations=2))
    results = rows(folder, "result")
    assert all(row["score"] == row["tasks"]["selective-copying"] for row in results)
    assert all(0 <= row["score"] <= 1 for row in results)
    assert outcome.search.evaluator.quantity == "mean accuracy"


def test_a_search_for_score_and_cache_shows_its_front(folder):
    cost = {"measure": "cache", "model": str(MODELS / "llama3_2.yaml"), "overrides": ["size=1b"], "seq_len": 8192}
    outcome, page = run_search(config(folder, cost=cost, engine={"type": "evolution", "population": 4}, evaluations=12))
    front = outcome.pareto()
    assert [row["cost"] for row in front] == sorted(row["cost"] for row in front)
    assert [row["score"] for row in front] == sorted(row["score"] for row in front)
    per_layer = 2 * 8 * 64 * 8192  # keys and values of 8 heads of 64 channels
    assert {row["cost"] % per_layer for row in front} == {0}
    assert "Pareto front" in page.read_text()
    assert (folder / "pareto.png").is_file()


@pytest.mark.parametrize("name", sorted(path.name for path in (MODELS.parent / "search").glob("*.yaml")))
def test_the_searches_that_are_supplied_can_start(name, monkeypatch):
    monkeypatch.chdir(MODELS.parents[1])
    search = prepare(load(MODELS.parent / "search" / name, [], SearchConfig))
    assert search.identity()["space"]["layers"] == search.config.space.layers
