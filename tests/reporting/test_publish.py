"""A report folder is written whole, replaces only an earlier report, and leaves everything else alone."""

import os

import pytest

from hybridtron.errors import UserError
from hybridtron.reporting.publish import MANIFEST, publish, require_usable

OLD, NEW = {"fit.json": b"old", "1-a.png": b"old"}, {"fit.json": b"new", "report.html": b"new"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


@pytest.mark.parametrize("prepare", [lambda out: None, lambda out: out.mkdir()], ids=["new", "empty"])
def test_a_new_or_empty_folder_is_filled(tmp_path, prepare):
    prepare(tmp_path / "out")
    publish(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_parents_are_made(tmp_path):
    publish(tmp_path / "a" / "b", NEW)
    assert content(tmp_path / "a" / "b") == NEW


def test_an_earlier_report_is_replaced_as_a_whole(tmp_path):
    publish(tmp_path / "out", OLD)
    publish(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_with_a_file_of_somebody_else_is_left_alone(tmp_path):
    publish(tmp_path / "out", OLD)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt; expected a new folder, an empty one or an earlier report"):
        publish(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == {**OLD, "notes.txt": b"mine"}


def test_a_folder_that_only_looks_like_a_report_is_left_alone(tmp_path):
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds fit\.json"):
        require_usable(tmp_path)


def test_a_file_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        require_usable(tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="is the current folder"):
        require_usable(tmp_path / "here")


def test_a_failed_write_leaves_the_earlier_report(tmp_path):
    publish(tmp_path / "out", OLD)
    with pytest.raises(UserError, match="cannot be written"):
        publish(tmp_path / "out", {"fit.json": b"new", f"{'x' * 300}.png": b"name too long"})
    assert content(tmp_path / "out") == OLD
    assert os.listdir(tmp_path) == ["out"]
