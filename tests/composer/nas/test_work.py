"""What workers propose and record: engines through the store, evaluations that fail, scores with a cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.composer.costs.cost import Cost
from hybridtron.composer.engines.discrete import Engine, Observation
from hybridtron.composer.evaluation.evaluators import Evaluator
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import Search, SearchFailed, _propose, work
from hybridtron.config.load import build

SEARCH = {
    "name": "small",
    "evaluations": 12,
    "space": {"blocks": ["attn", "mlp"], "layers": 4},
    "evaluator": {"type": "function", "instance": 1},
    "engine": {"type": "bayesian", "start": 4, "batch": 3},
}


def config(folder: Path, **changes) -> SearchConfig:
    return build({**SEARCH, "folder": str(folder), **changes}, SearchConfig)


def score(layers, seed=0) -> dict:
    """More attention is better, best at the front; no pattern that begins with two MLPs can be had."""
    if layers[:2] == ("mlp", "mlp"):
        raise RuntimeError("out of memory\nand a long explanation")
    if layers == ("attn", "mlp", "mlp", "mlp"):
        return {"score": None}
    return {"score": sum((4 - i) * (name == "attn") for i, name in enumerate(layers)) / 10}


def searched(folder: Path, evaluate=score, costs=(), **changes) -> Search:
    settings = config(folder, **changes)
    return Search(settings, Evaluator(evaluate, {}, "score"), costs, settings.space.patterns)


def run(search: Search):
    store = Store(search.config.search_folder, search.identity())
    try:
        return work(search, store, lambda progress: None)
    finally:
        store.close()


def rows(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


@pytest.mark.parametrize("engine", [{"type": "bayesian", "start": 4, "batch": 3}, {"type": "evolution"}])
def test_patterns_that_fail_are_recorded_and_the_search_goes_on(tmp_path, engine):
    progress = run(searched(tmp_path, evaluations=16, engine=engine))
    step = progress.steps[-1]
    assert progress.is_complete
    assert len(step.finished) == 11
    assert len(step.failed) == 5  # four that raise, one without a number
    errors = {row.get("error") for row in rows(tmp_path, "result") if row["score"] is None}
    assert errors == {"RuntimeError: out of memory", None}


def test_bayesian_search_goes_on_after_a_stop_and_beside_another(tmp_path):
    """A claim of a living worker is left to it, and its pattern is not proposed again."""
    run(searched(tmp_path, evaluations=5))
    search = searched(tmp_path, evaluations=8)
    other = Store(tmp_path, search.identity())
    with other.locked() as recorded:
        known = {text for row in recorded if row["row"] == "propose" for text in row["patterns"]}
        theirs = next(p for p in ("attn attn attn attn", "attn attn attn mlp", "attn mlp attn mlp") if p not in known)
        other.append({"row": "propose", "step": 0, "patterns": [theirs]})
        other.append({"row": "claim", "pattern": theirs, "seed": 0, "worker": other.worker})
        other.append(
            {"row": "result", "pattern": theirs, "seed": 0, "score": 0.9, "seconds": 0, "worker": other.worker}
        )
    other.close()
    progress = run(search)
    proposed = [text for row in rows(tmp_path, "propose") for text in row["patterns"]]
    assert progress.is_complete
    assert len(proposed) == len(set(proposed)) == 8
    assert sum(row["pattern"] == theirs for row in rows(tmp_path, "result")) == 1


def test_a_search_without_any_score_has_failed(tmp_path):
    def never(layers, seed):
        raise FloatingPointError("overflow")

    with pytest.raises(SearchFailed, match=r"none of the 12 patterns .* the first error was FloatingPointError: over"):
        run(searched(tmp_path, never))


def test_each_proposal_of_a_batch_weighs_score_and_cost_anew(tmp_path):
    """Over a front of score against cost, one weight would send all of a batch to one end."""
    search = searched(tmp_path, costs=[Cost("parameters", (3.0, 1.0))], space={"blocks": ["attn", "mlp"], "layers": 8})
    progress = run(search)
    step = progress.steps[-1]
    spread = []
    for seed in range(6):
        batch = _propose(search, step, 4, np.random.default_rng(seed))
        assert len(set(batch)) == 4
        spread.append(np.ptp([sum(block == 0 for block in pattern) for pattern in batch]))
    assert np.median(spread) >= 2


def test_a_failed_pattern_counts_as_the_worst_not_as_pending(tmp_path):
    seen: dict[str, list] = {}

    class Listening(Engine):
        def propose(self, history, count, generator):
            seen.update(finished=list(history.finished), pending=list(history.pending))
            return []

    search = searched(tmp_path, evaluations=16)
    progress = run(search)
    step = progress.steps[-1]
    listening = search.config.model_copy(update={"engine": Listening(type="listening")})
    _propose(Search(listening, search.evaluator, (), search.space), step, 1, np.random.default_rng(0))
    worst = min(o.score for o in step.finished)
    assert seen["pending"] == []
    assert [o for o in seen["finished"] if o.pattern in step.failed] == [Observation(p, worst) for p in step.failed]


def train_search(tmp_path: Path, tiny: Path, *overrides: str) -> list[str]:
    file = tmp_path / "search.yaml"
    evaluator = {"type": "train", "run": str(tiny), "overrides": ["train.steps=6", *overrides]}
    file.write_text(yaml.safe_dump({**SEARCH, "engine": {"type": "random"}, "evaluations": 1, "evaluator": evaluator}))
    return ["search", str(file), f"folder={tmp_path / 'search'}"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.train=/nowhere/train", ["evaluator.run", "/nowhere/train"]),
        ("data.seq_len=100000", ["evaluator.run", "seq_len"]),
        ("model.pattern=attn", ["evaluator.overrides", "model.pattern"]),
        ("data.valid=null", ["evaluator.run", "data.valid"]),
        ("optimizer.lrr=1", ["evaluator.run", "nearest: lr"]),
    ],
)
def test_what_the_training_runs_lack_is_told_before_anything_is_written(tmp_path, tiny, capsys, override, named):
    assert main(train_search(tmp_path, tiny, override)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for words in named:
        assert words in message
    assert not (tmp_path / "search").exists()


def test_other_tokens_under_the_same_name_are_another_search(tmp_path, tiny, corpus, capsys):
    for name in ("train", "valid"):
        for suffix in (".bin", ".idx", ".json"):
            source = corpus / f"{name}{suffix}"
            if source.exists():
                (tmp_path / source.name).write_bytes(source.read_bytes())
    mine = [f"data.{name}={tmp_path / name}" for name in ("train", "valid")]
    assert main(train_search(tmp_path, tiny, *mine)) == 0
    assert main(train_search(tmp_path, tiny)) == 0  # the same tokens elsewhere
    for suffix in (".bin", ".idx", ".json"):
        if (corpus / f"valid{suffix}").exists():
            (tmp_path / f"train{suffix}").write_bytes((corpus / f"valid{suffix}").read_bytes())
    capsys.readouterr()
    assert main(train_search(tmp_path, tiny, *mine)) == 2
    assert "holds another search: evaluator.run.data.train" in capsys.readouterr().err


def test_bad_keys_of_the_mad_evaluator_are_named_with_their_place(tmp_path, capsys):
    blocks = {"attn": {"type": "attention", "num_heads": 2}, "mlp": {"type": "swiglu", "ffn_hidden_size": 16}}
    file = tmp_path / "search.yaml"
    for changes, place in (
        ({"preset": "serch"}, "evaluator.preset"),
        ({"tasks": {"memorisation": {}}}, "evaluator.tasks"),
        ({"hidden_size": 33}, "evaluator"),
        ({"residual": {"type": "sandwitch"}}, "evaluator"),
    ):
        evaluator = {"type": "mad", "blocks": blocks, "hidden_size": 16, **changes}
        file.write_text(yaml.safe_dump({**SEARCH, "evaluator": evaluator}))
        assert main(["search", str(file), f"folder={tmp_path / 'search'}"]) == 2
        assert capsys.readouterr().err.startswith(f"hybridtron: error: {place}: ")
    assert not (tmp_path / "search").exists()


def test_several_workers_from_one_command_and_a_page_of_what_is_there(tmp_path, hybridtron):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**SEARCH, "folder": "search", "engine": {"type": "random"}}))
    refused = hybridtron("search", file, "--report")
    assert refused.returncode == 2
    assert "holds no search" in refused.stderr
    done = hybridtron("search", file, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert len({row["worker"] for row in rows(tmp_path / "search", "claim")}) >= 1
    assert len(rows(tmp_path / "search", "result")) == 12
    assert done.stdout.count("patterns evaluated") == 1
    (tmp_path / "search/report.html").unlink()
    so_far = hybridtron("search", file, "evaluations=16", "--report")
    assert so_far.returncode == 0, so_far.stderr
    assert len(rows(tmp_path / "search", "result")) == 12
    assert (tmp_path / "search/report.html").is_file()
