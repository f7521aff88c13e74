"""Rows of padding are added to a vocabulary on the way in, and left out on the way out."""

from __future__ import annotations

import json

import pytest
import torch

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.convert.vocabulary import check_vocabulary_size
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.errors import UserError
from tests.convert.families import read_folder

ROWS, PADDED = 258, 320
NAMES = ["llama", "llama, biases, tied, wide heads", "mamba, biases, head"]


@pytest.fixture(scope="module")
def padded(theirs, tmp_path_factory):
    """A Llama as a run with rows of padding."""
    out = tmp_path_factory.mktemp("padded") / "run"
    ht.convert.from_hf(theirs["llama"].folder, out, pad_vocab_to=64, logits="never")
    return out


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_zeros_and_leaves_the_logits_of_tokens_as_they_are(theirs, tmp_path, name):
    receipt = ht.convert.from_hf(theirs[name].folder, tmp_path / "run", pad_vocab_to=64, logits="never")
    assert receipt.vocabulary == {"read": ROWS, "written": PADDED}
    assert not receipt.different
    model = ht.load(tmp_path / "run")
    assert model.config.model.vocab_size == PADDED
    assert len(model.embedding.weight) == PADDED
    assert model.embedding.weight[:ROWS].all(dim=1).any()
    assert not model.embedding.weight[ROWS:].any()
    logits = model.logits(theirs[name].tokens[:, :-1])
    torch.testing.assert_close(logits[..., :ROWS], theirs[name].logits, rtol=0, atol=1e-4)
    assert not logits[..., ROWS:].any()


@pytest.mark.parametrize("name", NAMES)
def test_without_its_padding_it_is_bitwise_the_original(theirs, tmp_path, name):
    ht.convert.from_hf(theirs[name].folder, tmp_path / "run", pad_vocab_to=64, logits="never")
    receipt = ht.convert.to_hf(tmp_path / "run", tmp_path / "back", vocab_size=ROWS, logits="never")
    assert not receipt.different
    back, original = read_folder(tmp_path / "back"), read_folder(theirs[name].folder)
    assert sorted(back) == sorted(original)
    assert all(torch.equal(back[key], tensor) for key, tensor in original.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == ROWS
    assert json.loads((tmp_path / "back" / "conversion.json").read_text())["vocabulary"] == {
        "read": PADDED,
        "written": ROWS,
    }


def test_the_receipt_compares_the_logits_of_tokens_of_both(padded, theirs, tmp_path, monkeypatch, capsys):
    """Of a padded run and the folder that it becomes, as a class of transformers' and as our own."""
    monkeypatch.setattr(
        "hybridtron.convert.logits._logits_of_two_processes", lambda run, tokens: ht.load(run).logits(tokens).detach()
    )
    for architecture in ("llama", "hybridtron"):
        out = tmp_path / architecture
        verb = ["convert", "to-hf", str(padded), str(out), "--as", architecture, "--vocab-size", "257"]
        assert main([*verb, "--logits", "always"]) == 0
        assert "320 rows read, 257 written" in capsys.readouterr().out
        receipt = json.loads((out / "conversion.json").read_text())
        assert receipt["same_logits"] is True
        assert all(difference < 1e-4 for difference in receipt["logits"].values())
    section = json.loads((tmp_path / "hybridtron" / "config.json").read_text())["model"]
    assert section["vocab_size"] == 257


def test_a_vocabulary_grows_on_the_way_out_too(padded, tmp_path):
    ht.convert.to_hf(padded, tmp_path / "out", vocab_size=384, logits="never")
    embedding, whole = read_folder(tmp_path / "out")["model.embed_tokens.weight"], ht.load(padded).embedding.weight
    assert torch.equal(embedding, torch.cat([whole, torch.zeros(64, whole.shape[1])]))


def test_rows_of_tokens_are_kept(padded, theirs, tmp_path, capsys):
    def refused(*arguments):
        assert main(["convert", *map(str, arguments)]) == 2
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    out, folder = tmp_path / "out", theirs["llama"].folder
    assert "--vocab-size = 256: expected at least 257" in refused("to-hf", padded, out, "--vocab-size", 256)
    assert "--vocab-size = -1: expected at least 257" in refused("to-hf", padded, out, "--vocab-size", -1)
    assert "--pad-vocab-to = 0: expected at least 1" in refused("from-hf", folder, out, "--pad-vocab-to", 0)


def test_ids_that_generation_knows_are_tokens_in_use():
    generation = {"bos_token_id": None, "eos_token_id": [256, 299], "pad_token_id": 280}
    check_vocabulary_size(300, 320, ByteTokenizer(), generation)
    with pytest.raises(UserError, match="vocab_size = 299: expected at least 300, the number of tokens in use"):
        check_vocabulary_size(299, 320, ByteTokenizer(), generation)
    check_vocabulary_size(98, 98, ByteTokenizer(), {})  # a model without a row for each byte
