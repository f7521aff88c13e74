"""What the page, result.json and the terminal tell of a search, and that they claim no more than was found."""

from __future__ import annotations

import base64
import json
import re
import struct
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridtron.composer.nas.config import SearchConfig, SpaceConfig
from hybridtron.composer.nas.run import report_search, run_search
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.plots import without_outliers
from hybridtron.composer.report.summary import summary
from hybridtron.composer.report.tables import front
from hybridtron.config.load import build
from hybridtron.reporting.numbers import decimals, plural
from hybridtron.reporting.page import macros
from hybridtron.reporting.table import decimal_column, integer_column
from tests.composer.small import MAD, SEARCH

sentences = macros("hybridtron.composer.report", "sentences.j2")
MODELS = Path(__file__).parents[3] / "configs/models"
LONG_FRONT = {"type": "function", "instance": 4}  # five of its 16 patterns, each with one attention layer more
CACHE = {"measure": "cache", "model": str(MODELS / "llama3_2.yaml"), "overrides": ["size=1b"], "seq_len": 8192}
INCREMENTAL = {"methodology": {"type": "end_incremental", "step_layers": 2}, "engine": {"type": "exhaustive"}}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def searched(folder: Path, **changes: Any) -> tuple[Outcome, str]:
    outcome, page = run_search(build({**SEARCH, "folder": str(folder), **changes}, SearchConfig))
    return outcome, page.read_text()


def section(page: str, title: str) -> str:
    """The text of a section, by its heading."""
    (found,) = [part for part in re.findall(r"<section.*?</section>", page, re.S) if f"<h2>{title}" in part]
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<img[^>]*>", "", found)))


def header(page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page[: page.index("</header>")]))


def test_an_incremental_search_is_reported_step_by_step(tmp_path):
    outcome, page = searched(tmp_path / "s", **INCREMENTAL)
    small, large = outcome.progress.steps
    handed = outcome.text(small.found) if small.found else ""
    assert "8 patterns evaluated in 2 steps (4 with 2 layers, 4 with 4 layers)" in header(page)
    assert f"It handed on {handed!s}" in section(page, "Step 1: 2 layers")
    assert f"4 patterns evaluated of 4 possible around {handed}" in section(page, "Step 2: 4 layers")
    for number, layers in ((1, 2), (2, 4)):
        part = section(page, f"Step {number}: {layers} layers")
        assert "N_1" in part
        assert "Best patterns" in part
        assert (tmp_path / "s" / f"votes-{number}.png").is_file()
    assert "patterns of different lengths are different problems" in section(page, "Result")
    assert len(large.finished) == 4


def test_counts_are_of_the_whole_search_and_no_step_s_optimum_is_the_space_s(tmp_path):
    outcome, page = searched(tmp_path / "s", **INCREMENTAL)
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert (result["evaluated"], result["patterns_in_space"]) == (8, 16)
    assert result["optimum"] is None
    assert [(step["layers"], step["evaluated"]) for step in result["steps"]] == [(2, 4), (4, 4)]
    assert result["steps"][0]["handed_on"]
    assert "4 layers of attn, mlp: 16 patterns" in header(page)
    text = summary(outcome)
    assert "8 patterns evaluated in 2 steps" in text
    assert "step 1 handed on" in text
    assert "4 of 4" not in text


def test_the_front_is_the_result_where_there_is_a_cost(tmp_path):
    outcome, page = searched(tmp_path / "s", cost=CACHE, evaluations=12, evaluator=LONG_FRONT)
    rows = outcome.pareto()
    card = section(page, "Result")
    assert f"A Pareto front of  {plural(len(rows), 'pattern')}" in card
    printed = summary(outcome)
    for row in rows:
        for text in (row["pattern"], f"{row['score']:.4f}", f"{row['cost']:,.0f}"):
            assert text in card
            assert any(row["pattern"] in line and text in line for line in printed.splitlines())
    assert "elements of cache" in printed


def test_a_shortened_front_keeps_both_ends(tmp_path):
    outcome, _ = searched(tmp_path / "s", cost=CACHE, evaluations=16, evaluator=LONG_FRONT)
    every, few = front(outcome).columns, front(outcome, 2).columns
    assert len(every[0].cells) == 5
    assert few[1].cells == (every[1].cells[0], every[1].cells[-1])
    assert few[0].cells == ("1", str(len(every[0].cells)))


@pytest.mark.parametrize(
    ("evaluations", "instance", "expected"),
    [
        (10, 2, "one seed does not show that the first is better"),
        (10, 1, "No pattern that was evaluated scores higher"),
        (6, 0, "The vote was not among the patterns evaluated"),
    ],
)
def test_the_vote_is_compared_with_the_best_evaluated_with_both_numbers(tmp_path, evaluations, instance, expected):
    evaluator = {"type": "function", "instance": instance, "noise": 0.3}
    changes = {"evaluator": evaluator, "aggregator": {"clusters": 2}, "evaluations": evaluations}
    outcome, page = searched(tmp_path / "s", **changes)
    vote, best = outcome.score_of(outcome.aggregate.pattern), max(o.score for o in outcome.observations)
    for text in (section(page, "Result"), summary(outcome)):
        assert expected in text
        assert f"{best:.4f}" in text
        assert vote is None or f"{vote:.4f}" in text


def test_a_best_cluster_of_one_pattern_is_a_warning(tmp_path):
    outcome, page = searched(tmp_path / "s", aggregator={"clusters": 10})
    assert len(outcome.aggregate.voters) == 1
    assert outcome.note
    assert outcome.note in section(page, "Result")
    assert outcome.note in summary(outcome)


def test_every_engine_that_proposed_is_credited(tmp_path):
    searched(tmp_path / "s", evaluations=4)
    engine = {"type": "evolution", "population": 3}
    _, page = searched(tmp_path / "s", evaluations=10, engine=engine)
    assert "engines evolution 6, random 4" in header(page)
    assert section(page, "Every evaluation").count("evolution") == 6
    _, page = searched(tmp_path / "t", evaluations=4)
    assert "engine random ·" in header(page)


def test_proposals_of_unknown_engines_are_not_credited_to_the_config_s(tmp_path):
    searched(tmp_path / "s", evaluations=4)
    file = tmp_path / "s" / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.pop("engine", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, page = searched(tmp_path / "s", evaluations=5, engine={"type": "evolution", "population": 3})
    assert "engines not recorded 4, evolution 1" in header(page)


def test_numbers_of_a_column_have_one_form():
    assert decimal_column("score", [0.5, 12.25, None]).cells == ("0.5000", "12.2500", "–")
    assert decimal_column("score", [0.50001, 0.50003]).cells == ("0.5000100", "0.5000300")
    assert integer_column("cost", [8_388_608.0, 0.0]).cells == ("8,388,608", "0")
    assert decimals([]) == 4


def test_costs_on_the_page_are_exact_and_on_the_right(tmp_path):
    _, page = searched(tmp_path / "s", cost=CACHE, evaluations=16)
    assert '<th class="num">elements of cache</th>' in page
    assert '<td class="num">8,388,608</td>' in page
    assert "8,388,600" not in page


def test_pictures_have_one_width_and_are_in_the_page(tmp_path):
    _, page = searched(tmp_path / "s", cost=CACHE, seeds=[0, 1])
    images = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert len(images) == 4
    assert len({struct.unpack(">I", image[16:20])[0] for image in images}) == 1
    assert "http" not in page
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', page)
    assert len({*alts}) == 4
    assert all(" " in alt and "png" not in alt for alt in alts)  # sentences, not names of files


@pytest.mark.parametrize("evaluations", [1, 2])
def test_a_search_of_one_or_two_patterns_has_a_page(tmp_path, evaluations):
    outcome, page = searched(tmp_path / "s", cost=CACHE, evaluations=evaluations)
    assert "1 patterns" not in page
    assert f"{evaluations} of 16 patterns evaluated" in summary(outcome)


def test_one_far_outlier_does_not_set_the_axes():
    draw = np.random.default_rng(0)
    values = [*draw.normal(0.5, 0.05, 40), -9.0]
    low, high = without_outliers(values)
    assert 0.3 < low < high < 0.7
    assert without_outliers([1.0, 1.0, 1.0, 2.0]) == (1.0, 2.0)  # no spread to judge by


def test_trust_is_reported_only_of_a_bayesian_search_whose_surrogate_fits():
    assert "can be trusted" in sentences.surrogate_sentence(0.9, {"bayesian"})
    assert "can be trusted" not in sentences.surrogate_sentence(0.2, {"bayesian"})
    assert "can be trusted" not in sentences.surrogate_sentence(0.9, {"random"})
    assert "did not use it" in sentences.surrogate_sentence(0.9, {"random"})


def test_accuracy_by_task_time_and_workers_are_on_the_page(tmp_path):
    outcome, page = searched(tmp_path / "s", evaluator={**MAD, "max_steps": 2}, evaluations=2)
    assert "selective-copying" in section(page, "Best patterns")
    assert re.search(r"a pattern, .* in all, by 1 worker ·", header(page))
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC · hybridtron \d", header(page))
    assert all("tasks" in row for row in outcome.progress.results.values())
    assert "One seed, so no interval: differences between scores can be chance." in section(page, "Result")


def test_failed_patterns_are_listed_with_their_errors(tmp_path):
    changes = {"engine": {"type": "exhaustive"}, "evaluations": 16}
    searched(tmp_path / "s", **changes)
    file = tmp_path / "s" / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["row"] == "result" and row["pattern"].startswith("mlp"):
            row |= {"score": None, "error": "MemoryError: no memory left for mlp"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome, page = searched(tmp_path / "s", **changes)
    failed = section(page, "Failed patterns")
    assert failed.count("MemoryError: no memory left for mlp") == len(outcome.step.failed) == 8
    assert "8 failed" in header(page)
    assert "8 of 16 patterns evaluated" in header(page)


def test_every_evaluation_is_in_a_folded_table_and_the_settings_are_yaml(tmp_path):
    outcome, page = searched(tmp_path / "s", evaluations=12)
    folded = re.findall(r"<details>.*?</details>", page, re.S)
    assert len(folded) == 2
    assert all(outcome.text(o.pattern) in folded[0] for o in outcome.observations)
    assert folded[0].count("<tr>") == 1 + 12
    assert "evaluations: 12\n" in folded[1]


def test_patterns_have_composer_s_form_where_their_blocks_have_letters(tmp_path):
    _, page = searched(tmp_path / "s")
    assert re.search(r"\b\dM\+\dA\b|\b\dA\+\dM\b", section(page, "Best patterns"))
    space = {"blocks": ["attn", "mamba"], "layers": 4}
    _, page = searched(tmp_path / "t", space=space)
    assert "Composer" not in section(page, "Best patterns")


def test_the_next_command_grows_the_result(tmp_path):
    outcome, page = searched(tmp_path / "s")
    pattern = outcome.text(outcome.aggregate.pattern)
    card = section(page, "Result")
    assert f"hybridtron scale '{pattern}' --method stack --target configs/models/llama3_2.yaml size=1b" in card
    space = {"blocks": ["one", "two"], "layers": 3}
    _, page = searched(tmp_path / "t", space=space)
    assert "--target TARGET.yaml" in section(page, "Result")


def test_constraints_are_words():
    space = SpaceConfig(
        blocks=["attn", "mlp"], layers=4, fixed="? ? ? mlp", at_most={"attn": 2}, at_least={"mlp": 1},
        longest_run={"attn": 1, "mlp": 3}, never_first=["mlp"], never_adjacent=[("mlp", "attn")],
    )  # fmt: skip
    assert sentences.constraints(space).splitlines() == [
        "at most 2 attn",
        "at least 1 mlp",
        "attn never twice in a row",
        "at most 3 mlp in a row",
        "mlp never first",
        "attn never right after mlp",
        "layer 4 is mlp",
    ]


def test_rules_are_explained_and_ties_marked(tmp_path):
    _, page = searched(tmp_path / "s", engine={"type": "exhaustive"}, evaluations=16, aggregator={"clusters": 1})
    rules = section(page, "What each rule would return")
    for sentence in ("N_0 takes at each layer", "N_1 lets", "layer chosen just before", "N_all lets", "best single is"):
        assert sentence in rules
    assert "Layers 1, 2, 3, 4 were ties" in section(page, "Result")
    assert "were ties" in section(page, "Vote per position")


def test_a_report_of_an_unfinished_search_says_so(tmp_path):
    searched(tmp_path / "s", **INCREMENTAL)
    file = tmp_path / "s" / "evaluations.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    results = [number for number, line in enumerate(lines) if json.loads(line)["row"] == "result"]
    file.write_text("".join(lines[: results[5] + 1]))
    outcome, page = report_search(build({**SEARCH, **INCREMENTAL, "folder": str(tmp_path / "s")}, SearchConfig))
    assert "not finished" in header(page.read_text())
    assert "6 patterns evaluated in 2 steps (4 with 2 layers, 2 with 4 layers), so far" in summary(outcome)
    assert "step 1 handed on" in summary(outcome)


def test_patterns_whose_intervals_overlap_are_not_distinguishable(tmp_path):
    noisy = {"type": "function", "instance": 1, "noise": 0.3}
    outcome, page = searched(tmp_path / "s", evaluator=noisy, evaluations=16, seeds=[0, 1, 2])
    best, quantile = max(outcome.observations, key=lambda o: o.score), 4.302653  # of Student's t at 95 %, 2 degrees
    overlapping = [
        o for o in outcome.observations if o.score + quantile * o.error >= best.score - quantile * best.error
    ]
    assert 1 < len(overlapping) < 16
    expected = f"Not distinguishable from the best are {plural(len(overlapping) - 1, 'other pattern')}"
    assert expected in section(page, "Result")
    assert expected in summary(outcome)
    assert (
        json.loads((tmp_path / "s" / "result.json").read_text())["not_distinguishable_from_best"]
        == len(overlapping) - 1
    )
    for name, evaluator, expected in (("t", noisy, True), ("u", SEARCH["evaluator"], False)):
        _, page = searched(tmp_path / name, evaluator=evaluator)
        assert "distinguishable" not in page
        assert ("One seed, so no interval: differences between scores can be chance." in page) == expected
