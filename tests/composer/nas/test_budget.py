"""Budgets of a search: evaluations, FLOPs, hours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybridtron.accounting.describe import describe
from hybridtron.composer import open_search
from hybridtron.composer.evaluation.evaluators import make_evaluator
from hybridtron.composer.nas.budget import admit_seeds, affordable, spent_on
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import report_search, run_search
from hybridtron.composer.nas.worker import SearchFailed, prepare
from hybridtron.config.load import build, load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve
from tests.composer.small import MAD

QUICKSTART = str(Path(__file__).parents[3] / "configs/runs/quickstart.yaml")
SEARCH = {
    "name": "budget",
    "space": {"blocks": ["attn", "mlp"], "layers": 4},
    "evaluator": {"type": "function"},
    "engine": {"type": "random"},
}


def made(folder, **changes) -> SearchConfig:
    return build({**SEARCH, "folder": str(folder), **changes}, SearchConfig)


def test_the_flops_of_an_evaluation_are_those_of_its_training(tmp_path):
    evaluator = {"type": "train", "run": QUICKSTART, "overrides": ["train.steps=60"]}
    layers = ("attn", "mlp", "mlp", "attn")
    run = resolve(load(QUICKSTART, ["train.steps=60", "model.pattern=attn 2*mlp attn"], RunConfig))
    sequences = 60 * run.train.global_batch_size
    forward = describe(run.model, run.data.seq_len).flops_forward
    assert make_evaluator(made(tmp_path, evaluator=evaluator, evaluations=1)).cost(layers) == 3 * sequences * forward


def test_a_search_ends_before_the_evaluation_that_would_exceed_its_flops(tmp_path):
    config = made(tmp_path, evaluator=MAD, budget={"flops": 1e30}, engine={"type": "exhaustive"})
    evaluator = make_evaluator(config)
    first = [evaluator.cost(config.space.patterns.names(p)) for p in list(config.space.patterns.enumerate())[:3]]
    outcome, page = run_search(
        made(tmp_path, evaluator=MAD, budget={"flops": sum(first) - 1}, engine={"type": "exhaustive"})
    )
    result = outcome.as_json()
    assert result["evaluated"] == 2
    assert result["complete"]
    assert result["spent"]["flops"] == sum(first[:2])
    assert "would exceed" in result["stopped"]
    assert "The budget ended the search" in page.read_text()
    more, _ = run_search(made(tmp_path, evaluator=MAD, budget={"flops": sum(first)}, engine={"type": "exhaustive"}))
    assert more.as_json()["evaluated"] == 3


def test_asking_for_more_than_the_budget_allows_gives_each_that_it_allows_once(tmp_path):
    config = made(tmp_path, evaluator=MAD, budget={"flops": 1e30}, engine={"type": "exhaustive"})
    evaluator = make_evaluator(config)
    first = [evaluator.cost(config.space.patterns.names(p)) for p in list(config.space.patterns.enumerate())[:3]]
    settings = {**SEARCH, "folder": str(tmp_path), "evaluator": MAD, "engine": {"type": "exhaustive"}}
    with open_search({**settings, "budget": {"flops": sum(first)}}) as search:
        assert len({asked.id for asked in search.ask(9)}) == 3
        assert search.ask(9) == []


def test_hours_are_summed_over_workers_and_the_next_evaluation_may_take_the_longest_yet(tmp_path):
    search = prepare(made(tmp_path, budget={"hours": 1.0}, seeds=[0, 1]))
    patterns = list(search.space.enumerate())
    texts = [" ".join(search.space.names(pattern)) for pattern in patterns]
    rows = [{"row": "propose", "step": 0, "patterns": texts[:2]}]
    rows += [
        {"row": "result", "pattern": texts[0], "seed": seed, "score": 0.5, "seconds": seconds, "worker": f"w{seed}"}
        for seed, seconds in ((0, 360), (1, 540))
    ]
    progress = search.progress(rows)
    assert spent_on(search.config, search.evaluator, progress) == {"hours": 0.25}
    # Two evaluations wait and two more follow with each pattern, of 0.15 hours at most.
    assert affordable(search.config, search.evaluator, progress, patterns[2:6]) == ([patterns[2]], None)
    rows.append({"row": "propose", "step": 0, "patterns": texts[2:3]})
    allowed, reason = affordable(search.config, search.evaluator, search.progress(rows), patterns[3:6])
    assert not allowed
    assert reason == "the next evaluation would exceed 1 hours of evaluation: 0.85 are spent"


def test_seeds_are_added_only_where_the_budget_allows_them_for_every_pattern(tmp_path):
    """A refusal writes nothing; a larger budget takes them; and what was taken once is not asked for again."""
    budget = {"evaluator": MAD, "engine": {"type": "exhaustive"}}
    config = made(tmp_path, **budget, evaluations=1)
    evaluator, patterns = make_evaluator(config), list(config.space.patterns.enumerate())
    one, two = (evaluator.cost(config.space.patterns.names(pattern)) for pattern in patterns[:2])
    run_search(made(tmp_path, **budget, budget={"flops": one + two}))
    before = (tmp_path / "evaluations.jsonl").read_bytes()
    for seeds in ([0, 1], [0, 1, 2]):
        with pytest.raises(UserError, match=r"seeds = .* the 2 patterns .* budget\.flops of at least") as refusal:
            run_search(made(tmp_path, **budget, budget={"flops": 2 * (one + two) - 1}, seeds=seeds))
        assert "\n" not in str(refusal.value)
        assert (tmp_path / "evaluations.jsonl").read_bytes() == before
    outcome, _ = run_search(made(tmp_path, **budget, budget={"flops": 2 * (one + two)}, seeds=[0, 1]))
    assert outcome.as_json()["spent"]["flops"] == 2 * (one + two)
    assert outcome.num_evaluated == 2
    size = len((tmp_path / "evaluations.jsonl").read_bytes())
    run_search(made(tmp_path, **budget, budget={"flops": 2 * (one + two)}, seeds=[0, 1]))
    assert len((tmp_path / "evaluations.jsonl").read_bytes()) == size


def test_once_seeds_were_added_a_config_without_them_is_refused(tmp_path):
    """It would evaluate, and tell of, a part of the seeds only."""
    run_search(made(tmp_path, evaluations=2))
    run_search(made(tmp_path, evaluations=2, seeds=[0, 1]))
    before = (tmp_path / "evaluations.jsonl").read_bytes()
    for work in (run_search, report_search):
        with pytest.raises(
            UserError, match=r"seeds = \[0\]: since seeds were added, .* has \[0, 1\]; expected these"
        ) as found:
            work(made(tmp_path, evaluations=2))
        assert "\n" not in str(found.value)
    assert (tmp_path / "evaluations.jsonl").read_bytes() == before


def test_seeds_are_the_same_in_any_order(tmp_path):
    first, _ = run_search(made(tmp_path, evaluations=3, seeds=[0, 1]))
    before = (tmp_path / "evaluations.jsonl").read_bytes()
    second, _ = run_search(made(tmp_path, evaluations=3, seeds=[1, 0]))
    assert (tmp_path / "evaluations.jsonl").read_bytes() == before
    assert second.as_json() == first.as_json()


def test_patterns_of_ones_own_are_refused_where_the_budget_does_not_allow_their_other_seeds(tmp_path):
    given = {**SEARCH, "folder": str(tmp_path), "evaluator": MAD, "seeds": [0, 1]}
    cost = make_evaluator(build({**given, "evaluations": 1}, SearchConfig)).cost(("attn", "mlp", "mlp", "attn"))
    with open_search({**given, "budget": {"flops": 2 * cost - 1}}) as outside:
        one = {"pattern": "AMMA", "score": 0.5}
        before = (tmp_path / "evaluations.jsonl").read_bytes()
        with pytest.raises(UserError, match=rf"attn 2\*mlp attn: .* its other seeds: {re.escape(f'{2 * cost:g}')} of"):
            outside.tell([{**one, "seed": 0}], unasked=True)
        assert (tmp_path / "evaluations.jsonl").read_bytes() == before
        assert outside.tell([{**one, "seed": seed} for seed in (0, 1)], unasked=True).recorded == 2
    with open_search({**given, "budget": {"flops": 4 * cost}}) as outside:
        assert outside.tell([{**one, "pattern": "MAAM", "seed": 0}], unasked=True).recorded == 1


def test_a_seed_that_was_told_is_not_counted_twice(tmp_path):
    given = {**SEARCH, "folder": str(tmp_path), "seeds": [0, 1], "budget": {"hours": 1.0}}
    told = [{"pattern": pattern, "score": 0.5, "seed": 0, "seconds": 1500} for pattern in ("AMMA", "MMMM")]
    too_much = r"the budget does not allow its other seeds: 1\.66667 of 1 hours of evaluation would"
    with open_search(given) as outside:
        with pytest.raises(UserError, match=rf"^attn 2\*mlp attn \(and 1 more like it\): {too_much}"):
            outside.tell(told, unasked=True)
        assert outside.tell(told[:1], unasked=True).recorded == 1  # 3,000 seconds with the other seed
        with pytest.raises(UserError, match=rf"^4\*mlp: {too_much}"):
            outside.tell(told[1:], unasked=True)


def test_a_budget_of_hours_needs_the_seconds_of_what_is_told(tmp_path):
    given = {**SEARCH, "folder": str(tmp_path), "evaluations": 9}
    with open_search(given) as outside:  # told before there was a budget: counts as the longest
        outside.tell(pattern="AMMA", score=0.5, unasked=True)
    del given["evaluations"]
    with open_search({**given, "budget": {"hours": 1.0}}) as outside:
        with pytest.raises(UserError, match=r"has no seconds; expected those of the evaluation"):
            outside.tell(pattern="MMMM", score=0.5, unasked=True)
        outside.tell(pattern="MMMM", score=0.5, seconds=900, unasked=True)
        assert outside.report().as_json()["spent"] == {"hours": 0.5}


def test_hours_of_added_seeds_are_expected_to_be_the_longest_yet(tmp_path):
    search = prepare(made(tmp_path, budget={"hours": 1.0}, seeds=[0, 1]))
    texts = [" ".join(search.space.names(pattern)) for pattern in search.space.enumerate()][:3]
    rows = [{"row": "search", "seeds": [0]}, {"row": "propose", "step": 0, "patterns": texts}]
    rows += [
        {"row": "result", "pattern": text, "seed": 0, "score": 0.5, "seconds": seconds, "worker": "w"}
        for text, seconds in zip(texts, (360, 540, 720), strict=True)
    ]
    given = search.config, search.evaluator, search.progress(rows), rows
    with pytest.raises(UserError, match=r"would exceed 1 hours of evaluation; .* budget\.hours of at least 1\.05"):
        admit_seeds(*given)
    assert admit_seeds(made(tmp_path, budget={"hours": 1.06}, seeds=[0, 1]), *given[1:]) == {
        "row": "seeds",
        "of": [0, 1],
    }
    assert admit_seeds(*given[:3], [*rows, {"row": "seeds", "of": [0, 1]}]) is None
    assert admit_seeds(*given[:3], [{"row": "search", "seeds": [0, 1]}, *rows[1:]]) is None


def test_until_an_evaluation_has_ended_hours_allow_one_pattern(tmp_path):
    search = prepare(made(tmp_path, budget={"hours": 1.0}))
    patterns = list(search.space.enumerate())
    assert affordable(search.config, search.evaluator, search.progress([]), patterns) == ([patterns[0]], None)
    rows = [{"row": "propose", "step": 0, "patterns": [" ".join(search.space.names(patterns[0]))]}]
    assert affordable(search.config, search.evaluator, search.progress(rows), patterns[1:]) == ([], None)


def test_evaluations_may_stand_in_the_budget(tmp_path):
    outcome, _ = run_search(made(tmp_path, budget={"evaluations": 3}))
    assert outcome.num_evaluated == 3
    assert '"stop"' not in (tmp_path / "evaluations.jsonl").read_text()


def test_a_budget_that_allows_nothing_fails(tmp_path):
    with pytest.raises(SearchFailed, match="nothing has a score: the next evaluation would exceed 1 FLOPs"):
        run_search(made(tmp_path, evaluator=MAD, budget={"flops": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "evaluations: expected a whole number|evaluations = "),
        ({"budget": {}}, "one of evaluations, flops, hours"),
        ({"budget": {"evaluations": 3}, "evaluations": 3}, "budget.evaluations = 3"),
        ({"budget": {"flops": 1e9}}, "budget.flops = .*budget.evaluations with evaluator.type function"),
        ({"budget": {"hours": 1}, "evaluator": {"type": "outside"}}, "budget.hours"),
        ({"budget": {"hours": 1}, "methodology": {"type": "end_incremental", "step_layers": 2}}, "end_incremental"),
    ],
)
def test_budgets_that_say_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        made(tmp_path, **changes)
