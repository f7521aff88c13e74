"""Preparing a corpus: what comes out, and what is reported."""

import base64
import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.report import read_corpus_report, read_report
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.errors import UserError
from tests.data.corpora import FILES, contents, document, documents_in, write_jsonl

ALL = [document(i) for i in (*range(40), *range(100, 140), *range(200, 240))] + ["first\nbook", "second\nbook"]


def test_every_document_is_in_exactly_one_split_and_the_report_counts_them(mixed, tmp_path):
    report = prepare(find_sources([mixed]), tmp_path / "out", valid_fraction=0.2)
    train, valid = documents_in(tmp_path / "out" / "train"), documents_in(tmp_path / "out" / "valid")
    assert sorted(train + valid) == sorted(ALL)
    assert 5 <= len(valid) <= 45
    assert set(contents(tmp_path / "out")) == set(FILES)
    assert read_corpus_report(tmp_path / "out") == report
    for name, documents in (("train", train), ("valid", valid)):
        num_bytes = sum(len(text.encode()) for text in documents)
        split = read_report(tmp_path / "out" / name)
        assert (split.documents, split.bytes, split.tokens) == (len(documents), num_bytes, num_bytes + len(documents))
        assert split.bytes_per_token == num_bytes / (num_bytes + len(documents))
    assert (report.files, report.ignored_files, report.first_ignored) == (5, 1, [str(mixed / "cover.png")])


def test_sources_jsonl_says_what_became_of_every_file(mixed, tmp_path):
    prepare(find_sources([mixed]), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "sources.jsonl").read_text().splitlines()]
    assert {Path(line["file"]).name: line.get("documents", "ignored") for line in lines} == {
        "a.jsonl": 40,
        "b.jsonl.gz": 40,
        "one.txt": 1,
        "two.txt": 1,
        "c.jsonl.zst": 40,
        "cover.png": "ignored",
    }


@pytest.mark.parametrize(("num_workers", "shard_bytes"), [(2, 500), (1, 7000), (2, 1 << 20)])
def test_the_same_bytes_whatever_the_workers_and_the_cuts(mixed, tmp_path, num_workers, shard_bytes):
    with (mixed / "a.jsonl").open("a") as file:
        file.write('broken\n{"text": ""}\n{"text": "last"}\n')
    prepare(find_sources([mixed]), tmp_path / "whole", valid_fraction=0.3)
    prepare(
        find_sources([mixed]), tmp_path / "cut", valid_fraction=0.3, num_workers=num_workers, shard_bytes=shard_bytes
    )
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_split_stays_the_same_when_other_files_come_and_go(mixed, tmp_path):
    prepare(find_sources([mixed]), tmp_path / "all", valid_fraction=0.3)
    (mixed / "b.jsonl.gz").unlink()
    prepare(find_sources([mixed]), tmp_path / "fewer", valid_fraction=0.3)
    assert set(documents_in(tmp_path / "fewer" / "valid")) < set(documents_in(tmp_path / "all" / "valid"))


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_split_is_empty_with_two_documents(tmp_path, fraction):
    for folder in ("x", "y"):  # the same relative name: the two are drawn alike
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    prepare(find_sources([tmp_path / "x", tmp_path / "y"]), tmp_path / "out", valid_fraction=fraction)
    both = documents_in(tmp_path / "out" / "train") + documents_in(tmp_path / "out" / "valid")
    assert sorted(both) == ["x", "y"]


def test_an_empty_split_has_no_files(tmp_path):
    (tmp_path / "a.txt").write_text("alone")
    report = prepare(find_sources([tmp_path / "a.txt"]), tmp_path / "out")
    assert list(report.splits) == ["train"]
    assert not (tmp_path / "out" / "valid.bin").exists()
    assert read_report(tmp_path / "out" / "valid") is None
    write_jsonl(tmp_path / "b.jsonl", ["one", "two", "three"])
    assert list(prepare(find_sources([tmp_path / "b.jsonl"]), tmp_path / "out2", valid_fraction=0).splits) == ["train"]


def test_chosen_files_are_the_validation_split(mixed, tmp_path):
    prepare(find_sources([mixed], valid=[mixed / "books"]), tmp_path / "out")
    assert documents_in(tmp_path / "out" / "valid") == ["first\nbook", "second\nbook"]
    assert len(documents_in(tmp_path / "out" / "train")) == 120


def test_damaged_lines_are_counted_named_and_kept(tmp_path):
    damaged = {3: b'{"text": "cut', 5: b'{"body": "x"}', 6: b"\xff\xfe", 400: b'{"text": 7}'}
    good = {i: json.dumps({"text": document(i)}).encode() for i in range(1, 401) if i not in damaged}
    lines = [good.get(i) or damaged[i] for i in range(1, 401)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n\n  \n")
    report = prepare(find_sources([tmp_path / "a.jsonl"]), tmp_path / "out", shard_bytes=4000)
    assert report.damaged_lines == 4
    assert [(entry["line"], entry["reason"].split(":")[0]) for entry in report.first_damaged] == [
        (3, "not JSON"),
        (5, "no key 'text'; there is 'body'"),
        (6, "not UTF-8"),
        (400, "the value of 'text' is not text but int"),
    ]
    kept = [json.loads(line) for line in (tmp_path / "out" / "damaged.jsonl").read_text().splitlines()]
    assert {entry["line"]: base64.b64decode(entry["raw_base64"]) for entry in kept} == damaged
    assert sum(split.documents for split in report.splits.values()) == 396


def test_a_thousand_damaged_lines_are_all_kept_and_the_first_hundred_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text("broken\n" * 1000 + '{"text": "good"}\n')
    report = prepare(find_sources([tmp_path / "a.jsonl"]), tmp_path / "out")
    assert (report.damaged_lines, len(report.first_damaged)) == (1000, 100)
    assert len((tmp_path / "out" / "damaged.jsonl").read_text().splitlines()) == 1000


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_is_one_damage_and_its_readable_lines_are_documents(tmp_path, suffix):
    content = write_jsonl(tmp_path / "lines", [os.urandom(200).hex() for i in range(2000)]).read_bytes()
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    report = prepare(find_sources([path]), tmp_path / "out")
    documents = sum(split.documents for split in report.splits.values())
    assert 500 < documents < 2000
    assert report.damaged_lines == 1
    assert report.first_damaged[0]["line"] == documents + 1
    assert "cut short" in report.first_damaged[0]["reason"]
    entry = json.loads((tmp_path / "out" / "damaged.jsonl").read_text())
    assert content.split(b"\n")[documents].startswith(base64.b64decode(entry["raw_base64"]))


def test_a_whole_document_before_the_cut_is_a_document_and_not_lost_with_the_archive(tmp_path):
    lines = write_jsonl(tmp_path / "lines", ["one", "two", "three"]).read_bytes().rstrip()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-8])  # all but the checksum
    report = prepare(find_sources([tmp_path / "a.jsonl.gz"]), tmp_path / "out")
    assert sum(split.documents for split in report.splits.values()) == 3
    assert report.damaged_lines == 1
    assert json.loads((tmp_path / "out" / "damaged.jsonl").read_text())["raw_base64"] == ""


def test_empty_documents_are_counted_and_left_out(tmp_path):
    (tmp_path / "empty.txt").touch()
    write_jsonl(tmp_path / "a.jsonl", ["", "x", "", "y"])
    report = prepare(find_sources([tmp_path]), tmp_path / "out")
    assert report.empty_documents == 3
    assert sum(split.documents for split in report.splits.values()) == 2


def test_bytes_that_are_no_utf8_stay_as_they_are_with_the_byte_tokenizer(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    report = prepare(find_sources([tmp_path / "latin1.txt"]), tmp_path / "out")
    assert read_index(tmp_path / "out" / "train").tokens().tolist() == [*"Grüße".encode("latin-1"), 256]
    assert report.repaired_documents == 0


def test_a_byte_order_mark_before_the_first_line_is_no_damage(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert prepare(find_sources([tmp_path / "a.jsonl"]), tmp_path / "out").damaged_lines == 0


def test_a_hugging_face_tokenizer_encodes_what_it_decodes_and_repairs_are_counted(mixed, tmp_path, tokenizer_json):
    (mixed / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    (mixed / "surrogate.jsonl").write_text('{"text": "half \\ud800 pair"}\n')
    report = prepare(find_sources([mixed]), tmp_path / "out", tokenizer=str(tokenizer_json), num_workers=2)
    documents = [
        text for name in ("train", "valid") for text in documents_in(tmp_path / "out" / name, str(tokenizer_json))
    ]
    repaired = ["Gr\ufffd\ufffde", "half \ufffd\ufffd\ufffd pair"]
    assert sorted(documents) == sorted([*ALL, *repaired])
    assert report.repaired_documents == 2
    assert report.tokenizer["vocab_size"] == 400
    total = sum(split.bytes for split in report.splits.values())
    of_source = {repaired[0]: 5, repaired[1]: 13}  # half a pair counts three bytes
    assert total == sum(of_source.get(text, len(text.encode())) for text in documents)
    assert report.splits["train"].bytes_per_token > 1.5


def test_nothing_is_written_for_bad_input(mixed, tmp_path):
    out = tmp_path / "out"
    sources = find_sources([mixed])
    for options, message in (
        ({"tokenizer": "nope.json"}, "tokenizer = nope.json: no such file in /"),
        ({"valid_fraction": 1.0}, "valid_fraction = 1.0"),
        ({"num_workers": 0}, "num_workers = 0"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(sources, out, **options)
    with pytest.raises(UserError, match=r"no document in 1 file.*a.jsonl line 1: no key 'body'"):
        prepare(find_sources([mixed / "a.jsonl"]), out, json_key="body")
    assert not out.exists()


def test_an_existing_folder_is_refused_and_left_alone(mixed, tmp_path):
    out = tmp_path / "out"
    prepare(find_sources([mixed]), out)
    before = contents(out)
    with pytest.raises(UserError, match="holds a prepared corpus"):
        prepare(find_sources([mixed]), out)
    assert contents(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        prepare(find_sources([mixed]), tmp_path / "other")
    with pytest.raises(UserError, match="is a file"):
        prepare(find_sources([mixed]), tmp_path / "other" / "mine")
