"""Votes of the record: whoever comes later reads what was elected, with BoTorch or without."""

from __future__ import annotations

import json
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.nas.run import report_search
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import prepare, work
from hybridtron.config.load import build
from hybridtron.errors import UserError

INSTANCE = 9  # of which scores and posterior means elect different patterns
STEPS = {
    "methodology": {"type": "end_incremental", "step_layers": 4},
    "space": {"blocks": ["attn", "mlp"], "layers": 8},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def config(folder: Path, **changes) -> SearchConfig:
    mapping = {
        "name": "votes",
        "folder": str(folder),
        "evaluations": 16,
        "space": {"blocks": ["attn", "mlp"], "layers": 4},
        "evaluator": {"type": "function", "instance": INSTANCE, "noise": 0.3},
        "engine": {"type": "random", "noise": 0.3},
    }
    return build({**mapping, **changes}, SearchConfig)


class Left(Exception):
    """A worker has done what it was to do."""


def worked(settings: SearchConfig, monkeypatch, with_botorch: bool, until=lambda progress: False) -> Progress:
    """Let a worker work with BoTorch or without, until it has seen something or to the end; return what it saw last."""
    search, seen = prepare(settings), []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if until(progress):
            raise Left

    with monkeypatch.context() as patch, closing(Store(settings.search_folder, search.identity())) as store:
        if not with_botorch:
            patch.setitem(sys.modules, "botorch", None)  # its import fails, and it is not found
        with suppress(Left):
            work(search, store, watch)
    return seen[-1]


def rows(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_without_botorch_builds_on_what_one_with_it_elected_and_the_reverse(tmp_path, monkeypatch, first):
    """The first ends the first step; the second, which would elect another pattern, searches around its vote."""
    settings = config(tmp_path / "shared", **STEPS)
    begun = worked(settings, monkeypatch, first, until=lambda progress: len(progress.steps) == 2)
    alone = worked(config(tmp_path / "alone", **STEPS), monkeypatch, not first, lambda p: len(p.steps) == 2)
    assert [o.score for o in begun.steps[0].finished] == [o.score for o in alone.steps[0].finished]
    assert begun.steps[0].found != alone.steps[0].found  # else this would test nothing
    ended = worked(settings, monkeypatch, not first)
    assert ended.is_complete
    assert ended.steps[0].aggregate == begun.steps[0].aggregate
    assert all(proposed[:4] == begun.steps[0].found for proposed in ended.steps[1].proposals)
    votes = rows(tmp_path / "shared", "vote")
    assert [(row["step"], row["by"]) for row in votes] == [
        (0, "posterior mean" if first else "score"),
        (1, "score" if first else "posterior mean"),
    ]


@pytest.mark.parametrize("first", [True, False])
def test_confirmation_and_page_are_of_the_vote_that_was_recorded(tmp_path, monkeypatch, first):
    found = worked(config(tmp_path), monkeypatch, first).steps[0].aggregate
    confirm = config(tmp_path, confirm={"top": 1, "seeds": 2})
    vote = next(iter(worked(confirm, monkeypatch, not first).candidates))
    assert vote == found.pattern
    with monkeypatch.context() as patch:
        if first:
            patch.setitem(sys.modules, "botorch", None)
        outcome = report_search(confirm)[0]
    assert (outcome.aggregate, outcome.as_json()["voted_by"]) == (found, found.by)
    assert len(rows(tmp_path, "vote")) == 1


def test_a_worker_without_botorch_ranks_what_to_confirm_by_the_means_that_voted(tmp_path, monkeypatch):
    found = worked(config(tmp_path), monkeypatch, True).steps[0]
    worked(config(tmp_path, confirm={"top": 2, "seeds": 2}), monkeypatch, False)
    (row,) = rows(tmp_path, "confirm")
    assert found.aggregate.means is not None
    best = max(zip(found.aggregate.means, found.finished, strict=True), key=lambda pair: pair[0])[1].pattern
    roles = dict(zip(row["patterns"], row["roles"], strict=True))
    assert "rank 1 by posterior mean" in roles[" ".join(("attn", "mlp")[block] for block in best)]


def test_other_scores_or_another_aggregator_elect_anew_and_the_old_vote_is_found_again(tmp_path, monkeypatch):
    first = worked(config(tmp_path, evaluations=12), monkeypatch, True).steps[0].aggregate
    worked(config(tmp_path, evaluations=16), monkeypatch, True)
    worked(config(tmp_path, aggregator={"by": "score"}), monkeypatch, True)
    votes = rows(tmp_path, "vote")
    assert [(row["of"]["evaluated"], row["by"]) for row in votes] == [
        (12, "posterior mean"),
        (16, "posterior mean"),
        (16, "score"),
    ]
    assert [len(row.get("means", ())) for row in votes] == [12, 16, 0]
    worked(config(tmp_path), monkeypatch, False)
    assert rows(tmp_path, "vote") == votes
    assert first is not None
    assert votes[0]["pattern"] == " ".join(("attn", "mlp")[block] for block in first.pattern)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": [0.5]}, "means of a vote; expected 16 numbers"),
        ({"means": ["x"] * 16}, "means of a vote; expected 16 numbers"),
        ({"pattern": "attn"}, "pattern = 'attn'; expected one of 4 layers"),
        ({"pattern": "attn mlp atn mlp"}, "block 'atn'; expected one of attn, mlp"),
    ],
)
def test_a_damaged_vote_is_named(tmp_path, monkeypatch, changes, message):
    worked(config(tmp_path), monkeypatch, False)
    file = tmp_path / "evaluations.jsonl"
    *lines, vote = file.read_text().splitlines()
    file.write_text("\n".join([*lines, json.dumps({**json.loads(vote), **changes})]) + "\n")
    with pytest.raises(UserError, match=rf"evaluations\.jsonl:{len(lines) + 1}: damaged line: {message}"):
        report_search(config(tmp_path))
