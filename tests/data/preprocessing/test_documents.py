"""Lines of real files: cut at any byte, compressed in several ways, truncated, corrupt."""

import gzip
import json
import random

import pytest
import zstandard

from hybridtron.data.preprocessing.documents import DamagedArchive, DamagedLine, parse_document, read_lines

LINES = [json.dumps({"text": "x" * (i * 37 % 200), "n": i}).encode() for i in range(300)]
CONTENT = b"\n".join(LINES) + b"\n"


def noisy_lines(count):
    """Lines that do not compress well, so that an archive of them is long."""
    rng = random.Random(1)
    return [json.dumps({"text": rng.randbytes(300).hex()}).encode() for _ in range(count)]


def lines_of(path, start=0, end=1 << 60):
    counted = []
    lines = list(read_lines(path, start, end, counted.append))
    return lines, sum(counted)


def saved_of(path):
    """Lines before the damage, the damage, and the rest that it carries."""
    reader, lines = read_lines(path, 0, 0, lambda n: None), []
    while True:
        try:
            lines.append(next(reader))
        except DamagedArchive as damage:
            return lines, str(damage), damage.rest


def test_every_cut_gives_each_line_to_exactly_one_side(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    for cut in [1, *range(60, 600), len(CONTENT) - 1]:
        (before, read_before), (after, read_after) = lines_of(path, 0, cut), lines_of(path, cut, len(CONTENT))
        assert before + after == LINES
        assert read_before + read_after == len(CONTENT)


def test_a_range_inside_one_long_line_holds_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 1000 + b"\nlast")
    assert lines_of(path, 100, 200) == ([], 0)
    assert lines_of(path, 900, 1005)[0] == [b"last"]


@pytest.mark.parametrize("last", [b"", b"\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_the_last_line_may_lack_its_line_feed(tmp_path, suffix, last):
    compress = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(b"one\n\ntwo" + last))
    lines, num_bytes = lines_of(path)
    assert lines == [b"one", b"", b"two"]
    assert num_bytes == path.stat().st_size


def test_several_members_and_frames_are_read_to_the_end(tmp_path):
    half = len(CONTENT) // 2
    gz, zst = tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl.zst"
    gz.write_bytes(gzip.compress(CONTENT[:half]) + b"\0\0\0" + gzip.compress(CONTENT[half:]) + b"\0" * 512)
    zst.write_bytes(zstandard.compress(CONTENT[:half]) + zstandard.compress(CONTENT[half:]))
    assert lines_of(gz)[0] == LINES
    assert lines_of(zst)[0] == LINES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_keeps_what_was_readable(tmp_path, suffix):
    lines = noisy_lines(3000)
    content = b"\n".join(lines) + b"\n"
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    saved, reason, rest = saved_of(path)
    assert reason == f"the archive is cut short after {path.stat().st_size} bytes"
    assert len(saved) > 0.5 * len(lines)
    assert saved == lines[: len(saved)]
    assert lines[len(saved)].startswith(rest)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_corrupt_archive_keeps_what_comes_before(tmp_path, suffix):
    lines = noisy_lines(3000)
    content = b"\n".join(lines) + b"\n"
    with_checksum = zstandard.ZstdCompressor(write_checksum=True)
    whole = bytearray(gzip.compress(content) if suffix == ".gz" else with_checksum.compress(content))
    middle = len(whole) // 2
    whole[middle : middle + 64] = b"\xff" * 64
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole)
    saved, reason, _ = saved_of(path)
    assert "corrupt" in reason
    same = [got == sent for got, sent in zip(saved, lines, strict=False)]
    assert all(same[: int(0.4 * len(lines))])
    assert len(saved) > 0.4 * len(lines)


def test_a_wrong_gzip_checksum_loses_no_line(tmp_path):
    whole = bytearray(gzip.compress(CONTENT))
    whole[-8] ^= 1
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole)
    saved, reason, rest = saved_of(path)
    assert (saved, rest) == (LINES, b"")
    assert "incorrect data check" in reason


def test_what_is_no_archive_at_all(tmp_path):
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(CONTENT)
        assert saved_of(tmp_path / name)[0] == []


def test_the_text_of_a_line():
    assert parse_document(b'{"text": "a\\u00e9\\n", "id": 3}', "text") == "aé\n"
    assert parse_document(' {"content": "ü"}\r'.encode(), "content") == "ü"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"hello", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'["text"]', "not a JSON object but list"),
        (b'{"body": "a"}', "no key 'text'; there is 'body'"),
        (b"{}", "no key 'text'; there is none"),
        (b'{"text": 3}', "the value of 'text' is not text but int"),
        (b'{"text": null}', "the value of 'text' is not text but NoneType"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not JSON"),
    ],
)
def test_lines_without_a_document(line, reason):
    with pytest.raises(DamagedLine, match=reason):
        parse_document(line, "text")
