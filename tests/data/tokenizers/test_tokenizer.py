import json

import pytest

from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import HuggingFaceTokenizer
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from tests.data.kinds import EOD, KINDS, SENTENCES, saved, sentencepiece_bpe, word_level, word_piece

TEXT = "Grüße, 世界!\n\t🙂"


def test_byte_ids_are_the_bytes_of_utf8():
    tokenizer = load_tokenizer("byte")
    assert tokenizer.encode(TEXT).tolist() == list(TEXT.encode("utf-8"))
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)


def test_byte_round_trip_leaves_out_ends_of_documents_and_replaces_what_is_no_text():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([*tokenizer.encode(TEXT), 256]) == TEXT
    assert tokenizer.decode([0x41, 0xFF, 0x42, 256, 300]) == "A�B"
    assert tokenizer.encode_bytes(b"\xff\x00").tolist() == [255, 0]


def test_hugging_face_round_trip_without_the_truncation_and_padding_of_the_file(tokenizer_json):
    tokenizer = load_tokenizer(str(tokenizer_json))
    long, short = TEXT * 20, "a"
    assert tokenizer.decode(tokenizer.encode(long)) == long
    assert tokenizer.encode(short).size == 1
    assert tokenizer.vocab_size == 400
    assert tokenizer.decode([*tokenizer.encode(short), tokenizer.eod]) == short


def test_a_document_cannot_end_itself(tokenizer_json):
    tokenizer = load_tokenizer(str(tokenizer_json))
    text = "a<|endoftext|>b"
    assert tokenizer.eod not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_folder_stands_for_the_tokenizer_json_inside(tokenizer_json):
    assert load_tokenizer(str(tokenizer_json.parent)).fingerprint == load_tokenizer(str(tokenizer_json)).fingerprint


def test_end_of_document_is_the_given_then_the_configured_then_the_usual_name(tokenizer_json, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json.read_bytes())
    assert load_tokenizer(str(path)).eod == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    configured = load_tokenizer(str(path))
    assert configured.eod == 1
    assert load_tokenizer(str(path), eod_token="<|endoftext|>").eod == 0
    assert configured.fingerprint != load_tokenizer(str(path), eod_token="<|endoftext|>").fingerprint


def test_no_end_of_document_is_an_error_that_says_what_helps(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(UserError, match=r"no end-of-document token .*eod_token"):
        load_tokenizer(str(path))
    assert HuggingFaceTokenizer(path, eod_token="[UNK]").eod == 1


@pytest.mark.parametrize(
    ("spec", "eod_token", "message"),
    [
        ("bytes", None, r"^data.tokenizer = bytes: no such file in /.*; expected 'byte'"),
        ("byte", "</s>", r"byte tokenizer has its own"),
        ("broken.json", None, r"broken.json: is not a tokenizer.json"),
        ("good.json", "<nope>", r"eod_token = <nope>: is not in the vocabulary"),
    ],
)
def test_what_is_no_tokenizer(spec, eod_token, message, tokenizer_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"version": "1.0"')
    (tmp_path / "good.json").write_bytes(tokenizer_json.read_bytes())
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(spec, eod_token)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("eod_token", [None, "<pad>"])
def test_a_saved_tokenizer_is_the_same_one(eod_token, tokenizer_json, tmp_path):
    original = load_tokenizer(str(tokenizer_json), eod_token)
    original.save(tmp_path)
    copy = load_tokenizer(str(tmp_path))
    assert (copy.fingerprint, copy.eod, copy.name) == (original.fingerprint, original.eod, original.name)
    copy.save(tmp_path)  # onto itself
    assert load_tokenizer(str(tmp_path)).fingerprint == original.fingerprint


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_text_becomes_the_end_of_a_document_and_other_text_keeps_its_ids(kind, tmp_path):
    original = kind()
    tokenizer = load_tokenizer(str(saved(original, tmp_path)))
    assert tokenizer.eod == original.token_to_id(EOD)
    assert tokenizer.vocab_size == max(original.get_vocab().values()) + 1
    reachable = 0
    for text in (EOD, f"a {EOD} b", f"a{EOD}b", f"{EOD}{EOD}", f"x\n{EOD}\n", "<", "/s>"):
        original.encode_special_tokens = True
        reachable += tokenizer.eod in original.encode(text, add_special_tokens=False).ids
        ids = tokenizer.encode(text)
        assert tokenizer.eod not in ids
        if kind not in (word_level, word_piece):  # which do not have every character
            assert tokenizer.decode(ids).replace(" ", "").strip() == text.replace(" ", "").replace("\n", "") or (
                tokenizer.decode(ids) == text
            )
    assert reachable or kind is sentencepiece_bpe
    for sentence in (text.replace(EOD, "") for text in SENTENCES):
        assert tokenizer.encode(sentence).tolist() == original.encode(sentence, add_special_tokens=False).ids


def test_a_token_of_unknown_text_cannot_end_documents(tmp_path):
    tokenizer = HuggingFaceTokenizer(saved(word_level(), tmp_path), eod_token="[UNK]")
    assert tokenizer.encode("The quick").size == 2
    with pytest.raises(UserError, match="stands for unknown text; expected another eod_token"):
        tokenizer.encode("The unheard-of")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"model": 3}', '{"model": {"vocab": [1]}}', '{"model": {"vocab": {}}}']
)
def test_json_that_is_no_tokenizer(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.json: (is not a tokenizer.json|has no end-of-document token)"):
        load_tokenizer(str(tmp_path))
