"""Tokenizers of a Hugging Face folder give the ids of ours."""

from __future__ import annotations

import json

import pytest

from hybridtron.convert.tokenizer import GENERATION, byte_tokenizer, our_files, their_files
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from tests.training.runs import resolved_tiny

TEXTS = [
    "",
    "the model",
    " two  spaces\n\ttab",
    "naïve café 模型 🙂",
    "".join(map(chr, range(1, 256))),
    "<|endoftext|> x",
]


@pytest.fixture
def exported(tmp_path):
    for name, content in their_files(resolved_tiny(), tmp_path).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_through_transformers_are_our_ids(exported, text):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = ByteTokenizer().encode(text).tolist()
    fast = PreTrainedTokenizerFast.from_pretrained(exported)
    for tokenizer in (fast, AutoTokenizer.from_pretrained(exported)):
        assert tokenizer(text)["input_ids"] == ours
        assert tokenizer.eos_token_id == 256
        assert tokenizer.decode([*ours, 256], skip_special_tokens=True) == text


def test_the_byte_tokenizer_is_recognised(exported):
    files, notes = our_files(exported, {"vocab_size": 320})
    assert files.keys() == {GENERATION}
    assert notes == []
    assert json.loads(files[GENERATION]) == {"bos_token_id": 256, "eos_token_id": 256}


def test_a_tokenizer_file_goes_through_unchanged(tmp_path):
    content = byte_tokenizer()
    content["added_tokens"][0]["content"] = "[STOP]"
    content["model"]["vocab"]["[STOP]"] = content["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has no end-of-document token"):
        our_files(tmp_path, {})
    files, notes = our_files(tmp_path, {"eos_token_id": [256, 3], "vocab_size": 200})
    assert "has 257 tokens, and the model 200" in notes[0]
    run = tmp_path / "run"
    run.mkdir()
    for name, own in files.items():
        (run / name).write_bytes(own)
    assert load_tokenizer(str(run)).eod == 256
    config = resolved_tiny()
    config = config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": str(run)})})
    back = their_files(config, run)
    assert back["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert json.loads(back["tokenizer_config.json"])["eos_token"] == "[STOP]"
    assert json.loads(back[GENERATION])["eos_token_id"] == [256, 3]


def test_a_folder_in_place_of_a_tokenizer_file_is_no_missing_one(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match=r"tokenizer\.json: is a link, a device, a pipe or a folder; expected a plain"):
        our_files(tmp_path, {})
