"""Lines that are too long for memory have the text that json.loads finds in them."""

import gzip
import json
import random
import tempfile

import pytest

from hybridtron.data.preprocessing import documents, long_lines
from hybridtron.data.preprocessing.documents import DamagedLine, LongLine, parse_document, read_lines
from hybridtron.data.preprocessing.long_lines import read_long_document

PARTS = ["plain words ", "\n", '"', "\\", "\\u00e9", "é", "世", "🙂", "\ud83d", "\ude00", "\x7f", "/", "\t"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Have blocks end inside every kind of character and escape."""
    monkeypatch.setattr(documents, "LONGEST_LINE", 300)
    monkeypatch.setattr(documents, "BLOCK", 100)
    monkeypatch.setattr(long_lines, "BLOCK", 61)
    monkeypatch.setattr(long_lines, "LONG_TEXT", 80)


def text_of(line):
    with tempfile.TemporaryFile() as file:
        file.write(b"before" + line + b"behind")
        file.flush()
        blocks = list(read_long_document(LongLine(file, 6, 6 + len(line)), "text"))
    assert max(map(len, blocks)) <= 200
    return b"".join(blocks)


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_the_text_of_a_long_line(ensure_ascii):
    for seed in range(150):
        rng = random.Random(seed)
        parts = PARTS if ensure_ascii else [part for part in PARTS if part not in ("\ud83d", "\ude00")]
        values = {"text": "".join(rng.choices(parts, k=rng.choice([3, 30, 300]))), "id": [1, {"a": "b" * 200}], "z": ""}
        names = rng.sample(sorted(values), 3)
        line = json.dumps({name: values[name] for name in names}, ensure_ascii=ensure_ascii).encode()
        assert text_of(line) == parse_document(line, "text").encode("utf-8", "surrogatepass")


LONG = b"x" * 500


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "' + LONG, "not JSON: Unterminated string"),
        (b'{"text": "' + LONG + b"\\", "not JSON"),
        (b'{"text": "' + LONG + b"\\q" + LONG + b'"}', r"not JSON: Invalid \\escape"),
        (b'{"text": "' + LONG + b"\x01" + LONG + b'"}', "not JSON: Invalid control character"),
        (b'{"text": "' + LONG + b"\xff" + LONG + b'"}', "not UTF-8"),
        (b'{"body": "' + LONG + b'"}', "no key 'text'; there is 'body'"),
        (b'{"text": ["' + LONG + b'"]}', "the value of 'text' is not text but list"),
        (b'"' + LONG + b'"', "not a JSON object but str"),
        (LONG, "not JSON"),
    ],
)
def test_long_lines_without_a_document(line, reason):
    with pytest.raises(DamagedLine, match=reason):
        text_of(line)


@pytest.mark.parametrize("last", [b"", b"\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_long_lines_between_short_ones(tmp_path, suffix, last):
    lines = [b"one", LONG, b"", LONG * 3, b"y" * 299, b"z" * 300, b"w" * 301, b"end" * 200]
    content = b"\n".join(lines) + last
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)

    def read(start, end):
        found = []
        for line in read_lines(path, start, end, counted.append, tmp_path):
            found.append(line if isinstance(line, bytes) else line.read(line.start, 10**6))
            assert isinstance(line, bytes) or len(found[-1]) >= 300
        return found

    counted = []
    assert read(0, len(content)) == lines
    assert sum(counted) == path.stat().st_size
    if suffix == ".jsonl":
        for cut in range(1, len(content), 7):
            assert read(0, cut) + read(cut, len(content)) == lines
