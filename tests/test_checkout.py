"""The commit of the checkout, without its locks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hybridtron import checkout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, whatever the user's settings of git, or a hook in which the tests run, ask for."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for name in checkout.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(checkout, "PACKAGE", tmp_path)
    return tmp_path, git("rev-parse", "HEAD").strip()


def test_the_commit_says_whether_tracked_files_differ(repository):
    folder, head = repository
    assert checkout.commit() == head
    (folder / "new.py").write_text("b = 1\n")
    assert checkout.commit() == head
    (folder / "a.py").write_text("a = 2\n")
    assert checkout.commit() == f"{head}-dirty"
    assert b"+a = 2" in checkout.changes()


def test_a_hook_of_another_repository_changes_nothing(repository, monkeypatch):
    _, head = repository
    for name in checkout.ELSEWHERE:
        monkeypatch.setenv(name, "/nowhere")
    assert checkout.commit() == head


def test_nothing_writes_to_the_repository(repository):
    folder, head = repository
    index = folder / ".git" / "index"
    (folder / "a.py").touch()  # so that what the index remembers of the file is out of date
    before = index.stat().st_mtime_ns
    (folder / ".git" / "index.lock").write_text("held by another")
    assert checkout.commit() == head
    assert checkout.changes() == b""
    assert index.stat().st_mtime_ns == before


def test_a_copy_is_of_the_commit_that_was_noted_beside_it_whatever_repository_it_lies_in(repository, monkeypatch):
    folder, _ = repository
    copy = folder / "run" / "code" / "package"
    copy.mkdir(parents=True)
    (copy / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(checkout, "PACKAGE", copy)
    assert checkout.commit() is None
    noted = f"{'0123abcd' * 5}-dirty"
    (copy.parent / "git.txt").write_text(f"{noted}\n")
    assert checkout.commit() == noted
    for other in (b"no git checkout\n", b"notes\n", b"\xff\xfe\n"):
        (copy.parent / "git.txt").write_bytes(other)
        assert checkout.commit() is None


def test_a_file_of_that_name_in_the_root_of_a_checkout_is_no_note(repository, monkeypatch):
    folder, head = repository
    package = folder / "package"
    package.mkdir()
    (folder / "a.py").rename(package / "a.py")
    for arguments in (["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qm", "second"]):
        subprocess.run(["git", "-C", folder, *arguments], check=True)
    monkeypatch.setattr(checkout, "PACKAGE", package)
    (folder / "git.txt").write_text(f"{head}\n")
    assert checkout.commit() not in (None, head)


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path(tmp_path).parent))
    assert checkout.commit() is None
