"""Where a search is, from its rows: what counts in each step, and which rows are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress, read_progress
from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import prepare, work
from hybridtron.config.load import build
from hybridtron.errors import UserError


def config(folder: Path, **changes) -> SearchConfig:
    mapping = {
        "name": "steps",
        "folder": str(folder),
        "evaluations": 2,
        "space": {"blocks": ["attn", "mlp"], "layers": 6},
        "evaluator": {"type": "function", "instance": 3},
        "engine": {"type": "random"},
        "methodology": {"type": "end_incremental", "step_layers": 3, "keep": "best"},
    }
    return build({**mapping, **changes}, SearchConfig)


def searched(config: SearchConfig) -> Progress:
    """A search to its end, without its page."""
    search = prepare(config)
    store = Store(config.search_folder, search.identity())
    try:
        return work(search, store, lambda progress: None)
    finally:
        store.close()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["end_incremental", "middle_incremental"])
def test_a_step_counts_only_what_is_built_on_what_it_was_handed(tmp_path, method):
    """More evaluations find a better first half; what was tried around the old one counts no more."""
    methodology = {"type": method, "step_layers": 3, "keep": "best"}
    moved = 0
    for instance in range(6):
        changes = {"methodology": methodology, "evaluator": {"type": "function", "instance": instance}}
        few = searched(config(tmp_path / str(instance), **changes))
        many = searched(config(tmp_path / str(instance), **changes, evaluations=6))
        first, second = many.steps
        moved += first.found != few.steps[0].found
        assert len(first.finished) == len(second.finished) == 6
        assert all(second.space.allows(pattern) for pattern in second.proposals)
        assert second.space.allows(max(second.finished, key=lambda o: o.score).pattern)
        assert second.aggregate is not None
        assert all(second.space.allows(pattern) for pattern in second.aggregate.voters)
    assert moved


def test_another_aggregator_builds_on_its_own_choice_and_the_first_finds_all_it_needs(tmp_path):
    differ = 0
    for instance in range(6):
        folder = tmp_path / str(instance)
        methodology = {"type": "end_incremental", "step_layers": 3}
        changes = {"methodology": methodology, "evaluator": {"type": "function", "instance": instance}}
        best = config(folder, **changes, evaluations=6, aggregator={"clusters": 6})
        vote = config(folder, **changes, evaluations=6, aggregator={"clusters": 1})
        by_best, by_vote = searched(best), searched(vote)
        differ += by_best.steps[0].found != by_vote.steps[0].found
        for step in (by_best.steps[1], by_vote.steps[1]):
            assert len(step.finished) == 6
            assert all(step.space.allows(pattern) for pattern in step.proposals)
        recorded = rows(folder)
        assert searched(best).steps[1].finished == by_best.steps[1].finished
        assert rows(folder) == recorded
    assert differ


def test_a_dead_end_is_told_before_the_first_row(tmp_path):
    space = {"blocks": ["attn", "mlp"], "layers": 4, "never_adjacent": [["attn", "attn"], ["mlp", "mlp"]]}
    methodology = {"type": "middle_incremental", "step_layers": 1}
    settings = config(tmp_path / "x", space=space, methodology=methodology)
    with pytest.raises(UserError, match="step 1 of middle_incremental finds no pattern"):
        read_progress(settings, settings.space.patterns, [])


RESULT = {"row": "result", "pattern": "attn mlp mlp", "seed": 0, "score": 0.5}
DAMAGE = {
    "unknown block": ({**RESULT, "pattern": "attn mpl mlp"}, "block 'mpl'; expected one of attn, mlp (nearest: mlp)"),
    "unknown block proposed": ({"row": "propose", "step": 0, "patterns": ["attn mlp x"]}, "block 'x'; expected one of"),
    "no pattern": ({"row": "claim", "seed": 0, "worker": "w"}, "a claim has no pattern; expected names of blocks"),
    "no seed": ({"row": "claim", "pattern": "attn mlp mlp", "worker": "w"}, "a claim has no seed"),
    "no score": ({"row": "result", "pattern": "attn mlp mlp", "seed": 0}, "a result has no score; expected a number"),
    "no patterns": ({"row": "propose", "step": 0}, "a propose has no patterns; expected a list"),
    "a word as score": ({**RESULT, "score": "good"}, "score = 'good'; expected a number, or null"),
    "a number as pattern": ({**RESULT, "pattern": 3}, "pattern = 3; expected names of blocks"),
    "a number among patterns": ({"row": "propose", "step": 0, "patterns": [7]}, "block 7; expected one of"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_row_is_named(tmp_path, case):
    row, words = DAMAGE[case]
    folder = tmp_path / "search"
    searched(config(folder))
    file = folder / "evaluations.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, others[0], json.dumps(row) + "\n", *others[1:]]))
    with pytest.raises(UserError) as refusal:
        searched(config(folder))
    assert str(refusal.value).startswith(f"{file}:3: damaged line: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
