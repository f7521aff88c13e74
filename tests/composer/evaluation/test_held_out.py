"""Scores that select and test scores: on which data each is, and how a folder goes on that was begun without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from hybridtron.composer.evaluation.evaluators import make_evaluator
from hybridtron.composer.nas.run import run_search
from hybridtron.config.load import load
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import preset
from hybridtron.training.config import RunConfig
from hybridtron.training.proxy_run import train_proxy
from hybridtron.training.validation.resolve import resolve
from tests.composer.small import MAD, config

STEPS = ["train.steps=6", "train.log_every=1"]


@pytest.fixture
def other_tokens(tmp_path) -> Path:
    """Token files of another text."""
    return prepared(tmp_path / "other", ["far", "other", "words"])


def prepared(folder: Path, words: list[str]) -> Path:
    """Write token files of a text of these words."""
    folder.mkdir()
    (folder / "text.txt").write_text(" ".join(np.random.default_rng(1).choice(words, size=600)))
    prepare(find_sources([folder]), folder / "tokens", tokenizer="byte", valid_fraction=0.0)
    return folder / "tokens/train"


def short_run(tiny: Path, **changes) -> dict:
    return {"type": "train", "run": str(tiny), "overrides": STEPS, **changes}


def rows(folder: Path, kind: str = "result") -> list[dict]:
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["row"] == kind]


def begun_before(folder: Path) -> None:
    """Make the folder's record that of a search without test scores."""
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    del lines[0]["evaluator"]["test"]
    for row in lines:
        row.pop("test_score", None)
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def whole_loss(tiny: Path, row: dict, *overrides: str) -> float:
    """Train the run of a row and score it on all held-out tokens."""
    pattern = [f"model.pattern={row['pattern']}", f"seed={row['seed']}"]
    return train_proxy(resolve(load(tiny, [*STEPS, *pattern, *overrides], RunConfig)))


def test_one_half_of_the_held_out_tokens_selects_and_the_other_tests(tmp_path, tiny):
    everything = "train.eval_sequences=1000"
    evaluator = short_run(tiny, overrides=[*STEPS, everything])
    outcome, _ = run_search(config(tmp_path / "s", evaluator=evaluator, evaluations=1))
    (row,) = rows(tmp_path / "s")
    assert row["score"] != row["test_score"]
    # an even number of sequences: both halves together are the whole
    assert -fmean([row["score"], row["test_score"]]) == pytest.approx(whole_loss(tiny, row, everything), rel=1e-6)
    (best,) = outcome.best()
    assert (best["selecting_score"], best["test_score"]) == (row["score"], row["test_score"])
    assert best["test_score_of"] == "test data"


def test_tokens_of_their_own_test_and_all_of_valid_selects(tmp_path, tiny, other_tokens):
    """Of several sources the losses are weighed as those of data.valid are."""
    more = prepared(tmp_path / "more", ["still", "others"])
    test = [{"path": str(other_tokens), "weight": 1}, {"path": str(more), "weight": 3}]
    run_search(config(tmp_path / "s", evaluator=short_run(tiny, test=test), evaluations=1))
    (row,) = rows(tmp_path / "s")
    assert row["score"] == -whole_loss(tiny, row)
    losses = [whole_loss(tiny, row, f"data.valid={tokens}") for tokens in (other_tokens, more)]
    assert -row["test_score"] == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train", r"evaluator\.test = .*: has the tokens of data\.train; expected others"),
        ("valid", r"evaluator\.test = .*: has the tokens of data\.valid; expected others"),
        ("test", r"evaluator\.test: .*/test"),
    ],
)
def test_tokens_that_test_nothing_are_refused_before_anything_is_written(tmp_path, tiny, corpus, name, message):
    evaluator = short_run(tiny, test=str(corpus / name))
    with pytest.raises(UserError, match=message) as refusal:
        run_search(config(tmp_path / "s", evaluator=evaluator))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "s").exists()


def test_a_copy_of_training_tokens_is_refused_wherever_it_lies(tmp_path, tiny, corpus):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"renamed{suffix}").write_bytes((corpus / f"train{suffix}").read_bytes())
    with pytest.raises(UserError, match=r"renamed: has the tokens of data\.train; expected others"):
        make_evaluator(config(tmp_path / "s", evaluator=short_run(tiny, test=str(tmp_path / "renamed"))))


def test_a_refusal_names_the_path_as_it_was_given(tmp_path, tiny):
    missing = tmp_path / "data.valid" / "test"
    with pytest.raises(UserError, match=rf"evaluator\.test: .*{re.escape(str(missing))}"):
        make_evaluator(config(tmp_path, evaluator=short_run(tiny, test=str(missing))))


def test_one_held_out_sequence_is_not_halved(tmp_path, tiny, corpus):
    tokens = (corpus / "valid.bin").stat().st_size // 2
    evaluator = short_run(tiny, overrides=[*STEPS, f"data.seq_len={tokens - 1}"])
    with pytest.raises(UserError, match=r"data\.valid: .*has 1 evaluation sequence .*expected more, or eval"):
        make_evaluator(config(tmp_path, evaluator=evaluator))


def test_a_folder_of_short_runs_that_was_begun_without_test_scores_goes_on_as_it_began(tmp_path, tiny, other_tokens):
    folder = tmp_path / "s"
    run_search(config(folder, evaluator=short_run(tiny), evaluations=1))
    begun_before(folder)
    run_search(config(folder, evaluator=short_run(tiny), evaluations=2))
    row = rows(folder)[-1]
    assert "test_score" not in row
    assert row["score"] == -whole_loss(tiny, row)
    before = (folder / "evaluations.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"holds another search: evaluator\.test is null there") as refusal:
        run_search(config(folder, evaluator=short_run(tiny, test=str(other_tokens)), evaluations=3))
    assert "\n" not in str(refusal.value)
    assert (folder / "evaluations.jsonl").read_bytes() == before


def mad_row(row: dict, **changes) -> dict:
    """Train the task of a search's row."""
    (name, setting), layers = next(iter(MAD["tasks"].items())), row["pattern"].split()
    blocks = {block: MAD["blocks"][block] for block in dict.fromkeys(layers)}
    protocol = preset("search", **{key: MAD[key] for key in ("max_steps", "batch_size", "eval_examples")})
    (found,) = train_setting(Architecture("one", blocks, " ".join(layers), 16), name, setting, protocol, [row["seed"]])
    return found


def test_mad_selects_on_validation_examples_tests_on_others_and_confirms_on_these(tmp_path):
    confirm = {"top": 1, "seeds": 2}
    outcome, page = run_search(config(tmp_path / "s", evaluator=MAD, evaluations=2, confirm=confirm))
    for row in rows(tmp_path / "s"):
        trained = mad_row(row)
        assert (row["score"], row["test_score"]) == (trained["select_micro"], trained["test_micro"])
    fresh = [row for row in rows(tmp_path / "s") if row["seed"] > 0]
    found = outcome.as_json()["confirmation"]
    assert found["scores"] == "test"
    vote = [row["test_score"] for row in fresh if row["pattern"] == fresh[0]["pattern"]]
    assert found["patterns"][0]["score"] == pytest.approx(fmean(vote))
    kinds = {best["test_score_of"] for best in outcome.best()}
    assert kinds <= {"fresh seeds on test data", "test data"}
    assert "fresh seeds on test data" in kinds
    assert "on data by which the search has not selected" in page.read_text()


def test_a_folder_of_mad_that_was_begun_without_test_scores_goes_on_with_test_accuracy(tmp_path):
    run_search(config(tmp_path / "s", evaluator=MAD, evaluations=1))
    begun_before(tmp_path / "s")
    run_search(config(tmp_path / "s", evaluator=MAD, evaluations=2))
    row = rows(tmp_path / "s")[-1]
    assert row["score"] == mad_row(row)["test_micro"]
    assert "test_score" not in row


def test_a_preset_that_chooses_on_the_test_split_gives_no_test_scores(tmp_path):
    evaluator = make_evaluator(config(tmp_path, evaluator={**MAD, "preset": "madlab"}))
    assert "test" not in evaluator.identity
    assert "test" in make_evaluator(config(tmp_path, evaluator=MAD)).identity
