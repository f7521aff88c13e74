"""The record of a search: one search per folder, whoever starts when and whatever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridtron.composer.nas.store import Store
from hybridtron.composer.nas.worker import prepare
from hybridtron.errors import UserError
from tests.composer.small import config
from tests.conftest import environment

START_TOGETHER = """
import multiprocessing, sys
from pathlib import Path
from hybridtron.composer.nas.store import Store

def worker(folder, barrier, answers):
    for i in range(ROUNDS):
        barrier.wait()
        try:
            Store(Path(folder) / str(i), {"x": 1}).close()
        except Exception as error:
            answers.put(str(error))
    answers.put(None)

ROUNDS, WORKERS = 25, 4
context = multiprocessing.get_context("fork")
barrier, answers = context.Barrier(WORKERS), context.Queue()
processes = [context.Process(target=worker, args=(sys.argv[1], barrier, answers)) for _ in range(WORKERS)]
for process in processes:
    process.start()
left = WORKERS
while left:
    answer = answers.get()
    if answer is None:
        left -= 1
    else:
        print(answer)
for process in processes:
    process.join()
"""


def header(folder: Path) -> dict:
    return json.loads((folder / "evaluations.jsonl").read_text().splitlines()[0])


def test_workers_that_start_at_once_share_a_new_folder(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", START_TOGETHER, str(tmp_path)], env=environment(), capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    for i in range(25):
        assert len((tmp_path / str(i) / "evaluations.jsonl").read_text().splitlines()) == 1


def test_a_folder_that_a_killed_worker_had_only_begun_is_gone_on_with(tmp_path):
    (tmp_path / "workers").mkdir()
    (tmp_path / "store.lock").touch()
    Store(tmp_path, {"x": 1}).close()
    assert header(tmp_path)["x"] == 1


@pytest.mark.parametrize("begun", ["", '{"row": "sea'])
def test_a_first_line_that_was_not_whole_is_written_again(tmp_path, begun):
    (tmp_path / "evaluations.jsonl").write_text(begun)
    Store(tmp_path, {"x": 1}).close()
    assert header(tmp_path)["x"] == 1


def test_a_refused_search_changes_nothing(tmp_path):
    """Not even the torn last line of the search that lives there."""
    Store(tmp_path, {"x": 1}).close()
    file = tmp_path / "evaluations.jsonl"
    file.write_bytes(file.read_bytes() + b'{"row": "res')
    for path in (tmp_path / "workers", tmp_path / "store.lock"):
        path.rmdir() if path.is_dir() else path.unlink()
    before = file.read_bytes()
    with pytest.raises(UserError, match="x is 1 there, 2 here"):
        Store(tmp_path, {"x": 2})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.jsonl"]


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text('{"row": "result"}\n')
    with pytest.raises(UserError, match=r"evaluations\.jsonl:1: expected the beginning of a search"):
        Store(tmp_path, {"x": 1})
    (tmp_path / "evaluations.jsonl").write_text("pattern,score\n")
    with pytest.raises(UserError, match=r"evaluations\.jsonl:1: damaged line"):
        Store(tmp_path, {"x": 1})


@pytest.mark.parametrize("damage", [{"seeds": 5}, {"seeds": [[0]]}, {"evaluator": 5}, {"evaluator": "test"}])
def test_values_of_other_kinds_in_the_first_line_are_differences(tmp_path, damage):
    prepared = prepare(config(tmp_path))
    line = {"row": "search", "format": 1, **prepared.identity(), **damage}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=f"holds another search: {next(iter(damage))} is "):
        Store(tmp_path, prepare(config(tmp_path)).identity())


def test_links_in_a_search_folder_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "workers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="workers: is a link"):
        Store(tmp_path / "search", {"x": 1})
    assert not any((tmp_path / "elsewhere").iterdir())
    (tmp_path / "search" / "workers").unlink()
    store = Store(tmp_path / "search", {"x": 1})
    (tmp_path / "search" / "workers" / "other").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="workers/other: is a link"):
        store.is_alive("other")
    assert not store.is_alive("nobody")
    assert [path.name for path in (tmp_path / "search" / "workers").iterdir() if path.name != store.worker] == ["other"]
    store.close()
