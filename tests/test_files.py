"""Files that survive a kill."""

from __future__ import annotations

import pytest

from hybridtron.files import DAMAGED, append_rows, lock, open_rows, read_lines, replace_text


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("one\n", "two\n"):
        replace_text(file, text)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_replacement_that_fails_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    replace_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(file, "\ud800")
    assert file.read_text() == "old"


def test_rows_are_appended_and_a_cut_last_line_is_removed_first(tmp_path):
    file = tmp_path / "rows.jsonl"
    for content in (b"", b'{"x": 1}', b'{"x": 1}\n', b'{"x": 1}\n{"x": 2', b'{"x": 1}\n{"x": "\xc3'):
        file.write_bytes(content)
        stream, lines = open_rows(file)
        with stream:
            append_rows(stream, [{"x": 3}, {"x": 4}])
        assert [line.value for line in lines if not line.is_cut] == [{"x": 1}][: len(content)]
        kept = b'{"x": 1}\n' if content else b""
        assert file.read_bytes() == kept + b'{"x": 3}\n{"x": 4}\n'


def test_damaged_lines_are_numbered_and_only_a_last_line_can_be_cut():
    lines = read_lines(b'{"x": 1}\nnot json\n' + b"[" * 100_000 + b"\n[2]\n{")
    assert [line.number for line in lines if line.value is DAMAGED] == [2, 3, 5]
    assert [line.number for line in lines if line.is_cut] == [5]
    assert not any(line.is_cut for line in read_lines(b"{\n"))


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert lock(first)
        assert not lock(second)
        first.close()
        assert lock(second, wait=True)
