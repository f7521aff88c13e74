"""Files that survive a kill."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridtron.errors import UserError
from hybridtron.files import (
    DAMAGED,
    append_rows,
    json_text,
    lock,
    new_file,
    open_rows,
    open_to_write,
    read_last_row,
    read_lines,
    read_object,
    read_plain,
    remove_folder,
    replace_file,
    require_folder,
)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("one\n", "two\n"):
        replace_file(file, text)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_replacement_that_fails_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    replace_file(file, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(file, "\ud800")
    assert file.read_text() == "old"


def test_a_replacement_that_fails_names_the_file_and_not_its_draft(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        replace_file(tmp_path / "gone" / "a.txt", "new")
    assert raised.value.filename == str(tmp_path / "gone" / "a.txt")


def test_a_new_file_appears_whole_or_not_at_all(tmp_path):
    with new_file(tmp_path / "a") as file:
        file.write(b"one")
        assert not (tmp_path / "a").exists()
    with pytest.raises(UnicodeEncodeError), new_file(tmp_path / "b") as file:
        file.writelines([b"half", "\ud800".encode()])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


def test_a_new_file_is_written_over_nothing_and_needs_a_folder(tmp_path):
    (tmp_path / "mine").write_text("precious\n")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("mine", "link", "."):
        with pytest.raises(UserError, match=r"^out = .*: exists already; expected the name of a new file$"):
            new_file(tmp_path / name).__enter__()
    for path in (tmp_path / "gone" / "a", tmp_path / "mine" / "a"):
        with pytest.raises(UserError, match=r"^table = .* cannot be written \(.*\); expected a new file in a folder"):
            new_file(path, "table").__enter__()
    assert (tmp_path / "mine").read_text() == "precious\n"


def test_a_new_file_that_cannot_be_written_is_named_and_not_its_draft(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; from hybridtron.files import new_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))\n"
        "try:\n"
        "    with new_file(Path(sys.argv[1])) as file: file.write(bytes(1 << 14))\n"
        "except OSError as error: print(error.strerror, error.filename, sep=': ')"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert done.stdout == f"File too large: {tmp_path / 'a'}\n"
    assert list(tmp_path.iterdir()) == []


def test_another_file_that_fails_while_a_new_one_is_written_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, new_file(tmp_path / "a"):
        (tmp_path / "gone").read_text()
    assert raised.value.filename == str(tmp_path / "gone")


def test_a_draft_that_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".a.new-{os.getpid()}").write_text("half of it")
    with new_file(tmp_path / "a") as file:
        file.write(b"one")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_a_new_one_is_written_is_kept(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(UserError, match=r"^out = .*: exists already"), new_file(tmp_path / "a"):
        (tmp_path / "a").write_text("precious\n")
    assert (tmp_path / "a").read_text() == "precious\n"
    with new_file(tmp_path / "b") as file:
        file.write(b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"one"


def no_link(source, target):
    """Raise what link(2) does on a file system without hard links, such as FAT."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source)


NOT_PLAIN = {
    "link": lambda path, victim: path.symlink_to(victim),
    "broken link": lambda path, victim: path.symlink_to(victim / "gone"),
    "link to a device": lambda path, victim: path.symlink_to("/dev/zero"),
    "pipe": lambda path, victim: os.mkfifo(path),
    "folder": lambda path, victim: path.mkdir(),
}


def test_a_file_of_two_names_is_not_written_in_place(tmp_path):
    (tmp_path / "victim").write_text("precious\n")
    for write, name in ((open_rows, "rows.jsonl"), (open_to_write, ".lock")):
        (tmp_path / name).hardlink_to(tmp_path / "victim")
        with pytest.raises(UserError, match="hard links"):
            write(tmp_path / name)
    (tmp_path / "a.txt").hardlink_to(tmp_path / "victim")
    replace_file(tmp_path / "a.txt", "new")  # which gives the name to a new file
    assert (tmp_path / "victim").read_text() == "precious\n"


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_only_plain_files_are_written(kind, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.txt.new", "rows.jsonl", ".lock"):
        NOT_PLAIN[kind](tmp_path / name, victim)
    for write, name in ((open_rows, "rows.jsonl"), (open_to_write, ".lock"), (replace, "a.txt")):
        with pytest.raises((UserError, IsADirectoryError), match=r"expected a plain file|Is a directory"):
            write(tmp_path / name)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.txt").exists()


def replace(path):
    replace_file(path, "new")


def test_a_draft_that_is_a_second_name_of_a_file_does_not_write_into_it(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.txt.new").hardlink_to(tmp_path / "victim")
    replace_file(tmp_path / "a.txt", b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_only_plain_files_are_read_and_links_to_them(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "link") == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="expected a plain file"):
            read_plain(path)


def test_an_object_is_empty_where_its_file_holds_none(tmp_path):
    file = tmp_path / "object.json"
    assert read_object(file) == read_object(tmp_path) == {}
    for content in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000):
        file.write_bytes(content)
        assert read_object(file) == {}
    file.write_text('{"x": 1}')
    assert read_object(file) == {"x": 1}


def test_json_has_null_for_numbers_that_are_not_finite():
    value = {"a": [float("nan"), 1.5, {"b": float("inf")}], "c": (-float("inf"), 2, True, None, "x")}
    text = json_text(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5, {"b": None}],
        "c": [None, 2, True, None, "x"],
    }
    assert json_text({}, indent=None) == "{}"


def test_only_the_link_is_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(UserError, match="expected a folder"):
        require_folder(tmp_path / "link")
    remove_folder(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    require_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


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


@pytest.mark.parametrize("length", [10, 1 << 16, 1 << 19])
def test_the_last_whole_row_is_found_from_the_end(tmp_path, length):
    file = tmp_path / "rows"
    row = {"text": "x" * length}
    file.write_text("[1]\n" + json.dumps(row) + "\n" + '{"cut')
    assert read_last_row(file) == row
    file.write_text("[1]\n")
    assert read_last_row(file) is None
    assert read_last_row(tmp_path / "none") is None
