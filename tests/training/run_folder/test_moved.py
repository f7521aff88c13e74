"""Data and run folders hold their tokenizer and can be moved."""

from __future__ import annotations

import pytest

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from tests.conftest import TINY
from tests.data.kinds import SENTENCES, saved, sentencepiece_bpe


@pytest.fixture
def moved(tmp_path):
    """A run with a tokenizer of its own, moved with its data, while the tokenizer's first file is gone."""
    original = saved(sentencepiece_bpe(), tmp_path)
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(" ".join(SENTENCES * 10))
    sources = find_sources(sorted(tmp_path.glob("*.txt")))
    prepare(sources, tmp_path / "tokens", tokenizer=str(original), valid_fraction=0.3)
    data = {"train": tmp_path / "tokens/train", "valid": tmp_path / "tokens/valid", "tokenizer": original}
    config = {**TINY, "folder": str(tmp_path / "run"), "data": {"seq_len": 32, **{k: str(v) for k, v in data.items()}}}
    ht.train(config, "train.steps=2", "schedule.warmup_steps=1")
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "tokens"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    original.unlink()
    return tmp_path / "elsewhere"


def test_moved_runs_generate_are_evaluated_described_and_go_on(moved, capsys):
    run, tokens = str(moved / "run"), f"{moved}/tokens/"
    assert len(ht.load(run).generate(["The quick"], max_tokens=3)) == 1
    assert main(["eval", run, "--data", tokens + "valid"]) == 0
    for place in (run, f"{run}/step_00000002"):
        assert ht.describe(place).total == sum(p.numel() for p in ht.load(run).parameters())
    assert main(["describe", run, "--json"]) == 0
    more = ("train.steps=3", f"data.train={tokens}train", f"data.valid={tokens}valid")
    assert ht.train(run, *more, resume=True).summary["step"] == 3
    assert (moved / "run/step_00000003").is_dir()
    capsys.readouterr()


def test_moved_data_have_their_tokenizer(moved, tmp_path):
    tokens = f"{moved}/tokens/"
    data = {"train": tokens + "train", "valid": tokens + "valid", "tokenizer": tokens + "tokenizer.json", "seq_len": 32}
    assert ht.train({**TINY, "folder": str(tmp_path / "new"), "data": data}, "train.steps=4").summary["step"] == 4
