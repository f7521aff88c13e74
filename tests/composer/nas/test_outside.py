"""A search that is driven from outside: ask for patterns, tell their scores."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.composer import open_search, search
from hybridtron.composer.nas import worker
from hybridtron.errors import UserError

SEARCH = {
    "name": "outside",
    "evaluations": 5,
    "space": {"blocks": ["attn", "mamba", "mlp"], "layers": 3, "at_most": {"attn": 2}},
    "evaluator": {"type": "outside"},
    "engine": {"type": "random"},
}


@pytest.fixture
def config(tmp_path):
    return {**SEARCH, "folder": str(tmp_path / "s")}


def rows(tmp_path, kind):
    lines = (tmp_path / "s/evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


def test_a_search_is_asked_and_told_to_its_end(config):
    with open_search(config) as outside:
        told = {}
        while asked := outside.ask(2):
            results = [{"id": a.id, "score": a.layers.count("mamba"), "letters": a.letters} for a in asked]
            told |= {a.layers: a.layers.count("mamba") for a in asked}
            counts = outside.tell(results).as_json()
        assert (counts["evaluated"], counts["complete"]) == (5, True)
        outcome = outside.report()
    assert {outcome.step.space.names(o.pattern): o.score for o in outcome.observations} == told
    assert outcome.as_json()["best"][0]["letters"].count("B") == max(told.values())


def test_what_was_asked_for_is_nobody_elses_until_it_is_told_or_its_time_is_over(config):
    with open_search(config) as first, open_search(config) as second:
        held = first.ask(3)
        others = second.ask(9)
        assert len({a.id for a in [*held, *others]}) == 5
        assert second.ask() == []
        second.tell([{"id": held[0].id, "score": 1.0}])  # whoever tells
    with open_search({**config, "evaluations": 6}) as third:
        (again,) = third.ask(2, hold_hours=0)
        assert third.ask()[0].id == again.id


def test_asking_for_many_reads_the_record_once_and_gives_what_asking_for_one_after_the_other_does(
    config, tmp_path, monkeypatch
):
    """With seeds, batches and patterns that others have."""
    looks = []
    read = worker.read_progress

    def counted(*given):
        looks.append(given)
        return read(*given)

    settings = {**config, "evaluations": 7, "seeds": [0, 1], "engine": {"type": "random", "batch": 3}}
    with open_search(settings) as many, open_search({**settings, "folder": str(tmp_path / "one")}) as one:
        for search in (many, one):
            search.ask()
        monkeypatch.setattr(worker, "read_progress", counted)
        asked = many.ask(20)
        assert len(looks) == 1
        singly = []
        while found := one.ask():
            singly += found
    assert asked == singly
    assert len(asked) == 13


def test_scores_that_are_not_finite_are_failures_with_a_reason(config, tmp_path):
    with open_search(config) as outside:
        one, two, three = outside.ask(3)
        outside.tell([
            {"id": one.id, "score": math.nan},
            {"id": two.id, "score": None, "error": "out of memory"},
            {"id": three.id, "score": 1, "seconds": 3.5},
        ])  # fmt: skip
    results = rows(tmp_path, "result")
    assert [row["score"] for row in results] == [None, None, 1.0]
    assert [row.get("error") for row in results] == ["the score told was nan", "out of memory", None]
    assert results[2]["seconds"] == 3.5


REFUSED = {
    "a pattern that nobody proposed": ({"pattern": "AAB", "score": 1}, "was not proposed"),
    "one outside the space": ({"pattern": "AAA", "score": 1}, "has 3 attn; expected at most 2"),
    "an unknown letter": ({"pattern": "AXB", "score": 1}, "unknown Composer letter 'X'"),
    "an unknown id": ({"id": "ffff", "score": 1}, "unknown id"),
    "a seed of no search": ({"pattern": "ASKED", "seed": 7, "score": 1}, "seed = 7: expected one of 0"),
    "a score that is a text": ({"pattern": "ASKED", "score": "high"}, "score = 'high': expected a number"),
    "a score whose square is infinite": (
        {"pattern": "ASKED", "score": -1.7e308},
        "score = -1.7e+308: expected at most 1e+100 in size, or null for a failure",
    ),
    "less than no time": ({"pattern": "ASKED", "score": 1, "seconds": -5}, "seconds = -5: expected at least 0"),
    "no score": ({"pattern": "ASKED"}, "has no score"),
    "another score": ({"pattern": "TOLD", "score": 2}, "has the score 1.0 already"),
    "nothing": ({"score": 2}, "has neither id nor pattern"),
    "an id that is no text": ({"id": ["x"], "score": 2}, "unknown id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_refused_result_keeps_all_out(config, tmp_path, case):
    result, reason = REFUSED[case]
    with open_search({**config, "seed": 3}) as outside:  # proposes no AAB first
        told, asked, good = outside.ask(3)
        assert "AAB" not in (told.letters, asked.letters, good.letters)
        outside.tell(pattern=told.pattern, score=1)
        names = {"ASKED": asked.letters, "TOLD": told.letters}
        result = {
            **result,
            **({"pattern": names.get(result["pattern"], result["pattern"])} if "pattern" in result else {}),
        }
        with pytest.raises(UserError) as refusal:
            outside.tell([{"id": good.id, "score": 1}, result])
        assert "1 of 2 results are refused, and none recorded: result 2" in str(refusal.value)
        assert reason in str(refusal.value)
        assert len(rows(tmp_path, "result")) == 1
        assert outside.tell(pattern=told.letters, score=1).repeated == 1


def test_a_test_score_may_be_told_later(config, tmp_path):
    with open_search(config) as outside:
        (one,) = outside.ask()
        outside.tell([{"id": one.id, "score": 2, "seconds": 4}])
        assert outside.tell([{"id": one.id, "test_score": 0.5}]).recorded == 1
        assert outside.tell([{"id": one.id, "score": 2, "test_score": 0.5}]).repeated == 1
        with pytest.raises(UserError, match=r"has the test_score 0\.5 already"):
            outside.tell([{"id": one.id, "test_score": 0.6}])
        (best,) = outside.report().as_json()["best"]
    assert (best["score"], best["test_score"]) == (2.0, 0.5)
    assert [row.get("seconds") for row in rows(tmp_path, "result")] == [4.0, None]


def test_a_number_too_large_for_a_float_is_a_failure(config, tmp_path):
    with open_search(config) as outside:
        (one,) = outside.ask()
        outside.tell([{"id": one.id, "score": 10**400}])
    assert rows(tmp_path, "result")[0]["error"] == "the score told was inf"


def test_the_largest_scores_that_may_be_told_vote_and_have_a_page(config):
    settings = {**config, "seeds": [0, 1], "engine": {"type": "random", "noise": 0.1}}
    with open_search(settings) as outside:
        outside.tell([{"id": one.id, "score": 1e100 * (-1) ** n / (1 + n)} for n, one in enumerate(outside.ask(10))])
        assert outside.report().as_json()["complete"]
        assert outside.report().as_json()["complete"]  # the vote that was recorded is read


def test_a_whole_seed_that_is_written_with_a_point_is_recorded_as_a_whole_number(config, tmp_path):
    """As tables with gaps write it; later readers refuse rows whose seed is none."""
    with open_search(config) as outside:
        (one,) = outside.ask()
        outside.tell([{"pattern": one.pattern, "seed": 0.0, "score": 1}])
        assert outside.report().num_evaluated == 1
    assert [type(row["seed"]) for row in rows(tmp_path, "result")] == [int]


def test_patterns_of_ones_own_become_proposals(config, tmp_path):
    with open_search(config) as outside:
        own = [{"pattern": "AAB", "score": 1}, {"pattern": "BBB", "score": 2}]
        assert outside.tell(own, unasked=True).recorded == 2
    assert [row["engine"] for row in rows(tmp_path, "propose")] == ["outside"]
    assert "outside" in {row["worker"] for row in rows(tmp_path, "result")}


def test_who_tells_of_a_pattern_that_nobody_proposed_reads_how_to_in_words_of_his_own(config, tmp_path, capsys):
    with open_search(config) as outside, pytest.raises(UserError, match="a pattern of an ask, or unasked=True beside"):
        outside.tell(pattern="BBB", score=1)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
    assert main(["search", "tell", str(tmp_path / "search.yaml"), "--pattern", "BBB", "--score", "1"]) == 2
    assert "(BBB): was not proposed; expected a pattern of an ask, or --unasked beside it\n" in capsys.readouterr().err


def test_a_score_of_no_pattern_beside_results_is_refused_and_not_passed_over(config, tmp_path, capsys):
    with open_search(config) as outside, pytest.raises(UserError, match="score = 1: is for one `pattern`; expected it"):
        outside.tell([], score=1)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "scores.json").write_text('[{"id": "x", "score": 1}]')
    files = [str(tmp_path / name) for name in ("search.yaml", "scores.json")]
    assert main(["search", "tell", *files, "--seed", "0"]) == 2
    assert "error: --seed = 0: is for one --pattern; expected it beside it" in capsys.readouterr().err


def test_the_terminal_says_that_more_was_told_than_planned_and_that_nothing_is_left(config, tmp_path, capsys):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**config, "evaluations": 1}))
    for pattern in ("AAB", "BBB"):
        assert main(["search", "tell", str(file), "--pattern", pattern, "--score", "1", "--unasked"]) == 0
    assert "1 recorded; 2 evaluated, 1 planned, 0 failed; the search is complete" in capsys.readouterr().out
    assert main(["search", "ask", str(file), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert printed.err == "nothing to evaluate: the search is complete, or others have the rest\n"


def test_workers_take_told_scores_for_their_own(config, tmp_path):
    """The search counts what was told, and evaluates the rest itself."""
    config = {**config, "evaluator": {"type": "function"}, "evaluations": 4}
    with open_search(config) as outside:
        (asked,) = outside.ask()
        outside.tell(pattern=asked.pattern, score=0.25)
    outcome = search(config)
    assert outcome.num_evaluated == 4
    assert 0.25 in [o.score for o in outcome.observations]
    assert [row["worker"] for row in rows(tmp_path, "result")].count("outside") == 1


def test_two_commands_drive_a_search(config, tmp_path, capsys):
    file, results = tmp_path / "s.yaml", tmp_path / "results.json"
    file.write_text(yaml.safe_dump(config))
    assert main(["search", "ask", str(file), "--count", "4", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    results.write_text(json.dumps([{**one, "score": n} for n, one in enumerate(asked)]))
    assert main(["search", "tell", str(file), str(results)]) == 0
    assert capsys.readouterr().out == "4 recorded; 4 of 5 evaluated, 0 failed\n"
    assert main(["search", "ask", str(file)]) == 0
    pattern = capsys.readouterr().out.split("  ")[2].strip()
    assert main(["search", "tell", str(file), "--pattern", pattern, "--score", "nan"]) == 0
    assert capsys.readouterr().out == "1 recorded; 4 of 5 evaluated, 1 failed; the search is complete\n"
    assert main(["search", str(file), "--report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 1
    assert main(["search", str(file)]) == 2
    said = capsys.readouterr().err
    assert "search ask CONFIG" in said
    assert said.endswith("for their scores, or --report\n")
    with pytest.raises(UserError, match=r"or `report`$"):
        search(config)
    assert main(["search", "tell", str(file)]) == 2
    assert capsys.readouterr().err.startswith("hybridtron: error: RESULTS: expected a file of results, or --pattern")


def test_selecting_and_test_scores_are_apart(config):
    """Test scores that were told, and else those of fresh seeds."""
    told = {**config, "evaluations": 2}
    with open_search(told) as outside:
        one, two = outside.ask(2)
        outside.tell([{"id": one.id, "score": 2, "test_score": 0.5}, {"id": two.id, "score": 1}])
        best = outside.report().as_json()["best"]
    assert [(row["selecting_score"], row["test_score"], row["test_score_of"]) for row in best] == [
        (2.0, 0.5, "told"),
        (1.0, None, None),
    ]
    noisy = {"evaluator": {"type": "function", "noise": 0.3}, "confirm": {"top": 1, "seeds": 2}}
    outcome = search({**config, "folder": f"{config['folder']}-confirmed", **noisy})
    result = outcome.as_json()
    confirmed = {row["pattern"]: row["score"] for row in result["confirmation"]["patterns"]}
    tested = {row["pattern"]: row["test_score"] for row in result["best"] if row["test_score_of"] == "fresh seeds"}
    assert tested
    assert tested == {pattern: pytest.approx(confirmed[pattern]) for pattern in tested}
    assert all(row["selecting_score"] == row["score"] for row in result["best"])
