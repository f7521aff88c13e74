"""Preparing a corpus: encodings, long documents, disks and memory."""

import base64
import codecs
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.preprocessing import documents as documents_module
from hybridtron.data.preprocessing import shards
from hybridtron.data.preprocessing import text as text_module
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.data.tokenizers import windows
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from tests.data.corpora import ENVIRONMENT, document, documents_in, write_jsonl

TEXT = "Grüße, 世界!\n🙂"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", ""),
        ("utf-8", "\ufeff"),
        ("utf-16-le", "\ufeff"),
        ("utf-16-be", "\ufeff"),
        ("utf-32-le", "\ufeff"),
        ("utf-32-be", "\ufeff"),
    ],
)
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_byte_order_marks_tell_the_encoding_of_a_text_file(tmp_path, tokenizer_json, encoding, mark, kind):
    (tmp_path / "a.txt").write_bytes((mark + TEXT).encode(encoding))
    spec = "byte" if kind == "byte" else str(tokenizer_json)
    report = prepare(find_sources([tmp_path / "a.txt"]), tmp_path / "out", tokenizer=spec)
    assert documents_in(tmp_path / "out" / "train", spec) == [TEXT]
    assert report.splits["train"].bytes == len(TEXT.encode())
    assert report.repaired_documents == 0


def test_a_file_of_nothing_but_a_byte_order_mark_is_empty(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "b.txt").write_text("b")
    assert prepare(find_sources([tmp_path]), tmp_path / "out").empty_documents == 1


def test_bytes_are_those_of_the_source_and_not_of_its_replacement_characters(tmp_path, tokenizer_json):
    (tmp_path / "latin1.txt").write_bytes(b"\xfc" * 100)
    (tmp_path / "surrogates.jsonl").write_text('{"text": "' + "\\ud800" * 100 + '"}\n')
    report = prepare(find_sources([tmp_path]), tmp_path / "out", tokenizer=str(tokenizer_json), valid_fraction=0)
    assert report.splits["train"].bytes == 100 + 300
    assert report.repaired_documents == 2


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_long_document_is_encoded_as_any_other(tmp_path, tokenizer_json, suffix, kind, monkeypatch):
    text = "".join(document(i) + "\n" for i in range(3000))
    spec = "byte" if kind == "byte" else str(tokenizer_json)
    lines = "".join(json.dumps({"text": part}) + "\n" for part in ("first", text, "last"))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(
        {".txt": bytes, ".jsonl": lines.encode, ".jsonl.gz": lambda: gzip.compress(lines.encode())}[suffix]()
    )
    if suffix == ".txt":
        path.write_text(text)
    monkeypatch.setattr(documents_module, "LONGEST_LINE", 1000)
    monkeypatch.setattr(text_module, "PIECE", 5000)
    monkeypatch.setattr(windows.encode_in_windows, "__defaults__", (20_000, 1000))
    prepare(find_sources([path]), tmp_path / "out", tokenizer=spec, valid_fraction=0)
    stream = read_index(tmp_path / "out" / "train").tokens()
    tokenizer = load_tokenizer(spec)
    expected = [text] if suffix == ".txt" else ["first", text, "last"]
    assert stream.tolist() == [i for part in expected for i in (*tokenizer.encode(part), tokenizer.eod)]


def test_a_long_damaged_line_keeps_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "LONGEST_LINE", 1000)
    monkeypatch.setattr(shards, "KEPT_BYTES", 700)
    long = b'{"text": "' + b"x" * 5000 + b"\xff" + b'"}'
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
    report = prepare(find_sources([tmp_path / "a.jsonl"]), tmp_path / "out", valid_fraction=0)
    assert report.damaged_lines == 1
    assert documents_in(tmp_path / "out" / "train") == ["a", "b"]  # nothing is left of what came before the damage
    entry = json.loads((tmp_path / "out" / "damaged.jsonl").read_text())
    assert (entry["line"], entry["raw_bytes"]) == (2, len(long))
    assert base64.b64decode(entry["raw_base64"]) == long[:700]


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch, caplog):
    write_jsonl(tmp_path / "a.jsonl", ["x" * 1000] * 1000)
    sources = find_sources([tmp_path / "a.jsonl"])
    free = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"out: the token files take about 0\.0 GB, the disk has 0\.0 GB free"):
        prepare(sources, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1_500_000))
    prepare(sources, tmp_path / "out")
    assert "the token files take about" in caplog.text


def test_archives_which_may_hold_less_than_guessed_are_not_refused(tmp_path, monkeypatch, caplog):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "".join(map(chr, np.random.default_rng(0).integers(97, 122, 10_000)))}) + "\n")
    size = (tmp_path / "a.jsonl.gz").stat().st_size
    free = shutil.disk_usage(tmp_path)._replace(free=2 * size)  # a quarter of the guess
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    prepare(find_sources([tmp_path / "a.jsonl.gz"]), tmp_path / "out")
    assert "the token files take about" in caplog.text


def test_a_shard_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, missing, rename = set(), [], os.rename

    def fsync(descriptor):
        status = os.fstat(descriptor)
        synced.add((status.st_dev, status.st_ino))

    def checked_rename(old, new):
        for path in Path(old).iterdir():
            status = path.stat()
            missing.extend([path.name] * ((status.st_dev, status.st_ino) not in synced))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", checked_rename)
    (tmp_path / "a.txt").write_text("a")
    prepare(find_sources([tmp_path / "a.txt"]), tmp_path / "out")
    assert synced
    assert missing == []


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_damaged_utf_16_is_counted_as_repaired(tokenizer, tmp_path, tokenizer_json):
    for name, content in {
        "whole": "é𝄞\ufffd".encode("utf-16"),  # a replacement character of its own is no damage
        "half a pair": codecs.BOM_UTF16_LE + b"a\0\x00\xd8b\0",
        "half a character": codecs.BOM_UTF16_BE + b"\0ab",
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    spec = "byte" if tokenizer == "byte" else str(tokenizer_json)
    report = prepare(find_sources([tmp_path]), tmp_path / "out", tokenizer=spec)
    assert report.repaired_documents == 2


MEMORY_PROGRAM = """
import re, sys
from pathlib import Path
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources

prepare(find_sources([Path(sys.argv[1])]), Path(sys.argv[2]))  # as each of several workers does with its shard
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""


def test_memory_does_not_grow_with_the_longest_document(tmp_path):
    (tmp_path / "in").mkdir()
    text = b"not much of a text\\n" * (48 << 20 >> 4)  # 60 MB
    (tmp_path / "in" / "a.jsonl").write_bytes(b'{"text": "' + text + b'"}\n')
    (tmp_path / "in" / "b.txt").write_bytes(text)
    (tmp_path / "program.py").write_text(MEMORY_PROGRAM)
    arguments = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=True)
    assert int(done.stdout) < 150  # MB; twelve times the document where it is held whole
