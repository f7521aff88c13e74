"""Preparing a corpus: what survives a kill, and what input that changes on the way is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from hybridtron.data.preprocessing import corpus
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.errors import UserError
from hybridtron.processes import WorkerDied
from tests.data.corpora import ENVIRONMENT, contents, document, write_jsonl

PROGRAM = """
import json, sys
from multiprocessing import active_children
from pathlib import Path
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources

source, out, wait_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def progress(stage, done, total):
    finished = [path for path in (out / ".partial").glob("?????") if (path / "counts.json").exists()]
    if len(finished) >= wait_after:
        print(json.dumps([process.pid for process in active_children()]), flush=True)
        sys.stdin.read()  # held until it is killed

if __name__ == "__main__":
    prepare(find_sources([source]), out, num_workers=2, shard_bytes=20_000, progress=progress)
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def interrupted(tmp_path):
    """A preparation in another process, killed when three of its shards were finished."""
    source = write_jsonl(tmp_path / "a.jsonl", [document(i) * 5 for i in range(1000)])
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = [sys.executable, str(tmp_path / "program.py"), str(source), str(tmp_path / "out"), "3"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        workers = json.loads(process.stdout.readline())
        with pytest.raises(UserError, match="another process is preparing"):
            prepare(find_sources([source]), tmp_path / "out", shard_bytes=20_000)
        process.kill()
    deadline = time.monotonic() + 240
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
    return source, tmp_path / "out"


def test_after_a_kill_the_same_call_goes_on_and_ends_alike(interrupted, tmp_path):
    source, out = interrupted
    assert not (out / "train.bin").exists()
    finished = {path: path.stat().st_ino for path in (out / ".partial").glob("?????")}
    assert len(finished) >= 3
    done_at_start = []
    seen = set()

    def progress(stage, done, total):
        done_at_start.append(done)
        seen.update(path for path, inode in finished.items() if path.exists() and path.stat().st_ino == inode)

    with pytest.raises(UserError, match="begun with other json_key and shard size"):
        prepare(find_sources([source]), out, json_key="body")
    prepare(find_sources([source]), out, shard_bytes=20_000, progress=progress)
    assert done_at_start[0] >= 3 * 20_000
    assert seen == set(finished)
    prepare(find_sources([source]), tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_a_shard_that_lost_data_is_made_again(interrupted, tmp_path):
    source, out = interrupted
    first, second, third = sorted((out / ".partial").glob("?????"))[:3]
    os.truncate(first / "tokens.bin", 10)
    os.truncate(second / "documents.bin", 100)
    (third / "counts.json").unlink()
    prepare(find_sources([source]), out, shard_bytes=20_000)
    prepare(find_sources([source]), tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_a_kill_between_the_last_moves_is_made_good(interrupted, tmp_path):
    source, out = interrupted
    (out / ".partial" / "final").mkdir()
    (out / ".partial" / "final" / "valid.bin").write_bytes(b"half")
    (out / "train.bin").write_bytes(b"moved already")
    prepare(find_sources([source]), out, shard_bytes=20_000)
    prepare(find_sources([source]), tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")
    (out / ".partial").mkdir()
    (out / ".partial" / "00000").mkdir()
    with pytest.raises(UserError, match="holds a prepared corpus"):
        prepare(find_sources([source]), out, shard_bytes=20_000, json_key="id")
    assert contents(out) == contents(tmp_path / "straight")


class Stopped(Exception):
    """Raised where a kill is imitated."""


def test_a_stopped_merge_goes_on_and_shards_are_removed_as_they_merge(tmp_path):
    source = find_sources([write_jsonl(tmp_path / "a.jsonl", [document(i) * 5 for i in range(1000)])])
    prepare(source, tmp_path / "straight")
    most, stops = 0, []

    def progress(stage, done, total):
        nonlocal most
        work = tmp_path / "out" / ".partial"
        if stage == "merge":
            most = max(most, sum(path.stat().st_size for path in work.glob("**/*.bin") if path.name != "documents.bin"))
            if done > 0.3 * total and len(stops) < 2 and done not in stops:
                stops.append(done)
                with (work / "final" / "train.bin").open("ab") as file:
                    file.write(b"half of the next shard")
                raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            prepare(source, tmp_path / "out", shard_bytes=20_000, progress=progress)
    prepare(source, tmp_path / "out", shard_bytes=20_000, progress=progress)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    size = sum((tmp_path / "out" / f"{name}.bin").stat().st_size for name in ("train", "valid"))
    assert most < size + 3 * 20_000


def test_a_merge_that_lost_data_starts_again(tmp_path):
    source = find_sources([write_jsonl(tmp_path / "a.jsonl", [document(i) * 5 for i in range(300)])])
    prepare(source, tmp_path / "straight")

    def progress(stage, done, total):
        if stage == "merge" and done > 0.5 * total:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(source, tmp_path / "out", shard_bytes=20_000, progress=progress)
    os.truncate(tmp_path / "out" / ".partial" / "final" / "train.bin", 100)
    prepare(source, tmp_path / "out", shard_bytes=20_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("kept", [["settings.json"], ["settings.json", "lock", "00000"], "before the moves"])
def test_the_same_call_after_a_kill_in_the_last_moment_is_done(mixed, tmp_path, kept, monkeypatch):
    out, sources = tmp_path / "out", find_sources([mixed])
    report = prepare(sources, tmp_path / "straight")

    def stop(out):
        for path in (out / ".partial" / "final").iterdir() if kept != "before the moves" else ():
            os.replace(path, out / path.name)
        raise Stopped

    monkeypatch.setattr(corpus, "publish", stop)
    with pytest.raises(Stopped):
        prepare(sources, out)
    monkeypatch.undo()
    if kept != "before the moves":
        for path in (out / ".partial").iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert prepare(sources, out) == report
    assert contents(out) == contents(tmp_path / "straight")
    with pytest.raises(UserError, match="holds a prepared corpus"):
        prepare(sources, out)


def test_changed_input_does_not_go_on(interrupted):
    source, out = interrupted
    with source.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(UserError, match="begun with other input files"):
        prepare(find_sources([source]), out, shard_bytes=20_000)


def test_a_dead_worker_is_an_error_that_the_next_call_makes_good(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [document(i) * 5 for i in range(1000)])

    def kill_one(stage, done, total):
        if stage == "encode" and done > 0:
            for process in active_children()[:1]:
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(WorkerDied, match="signal SIGKILL"):
        prepare(find_sources([source]), tmp_path / "out", num_workers=2, shard_bytes=20_000, progress=kill_one)
    prepare(find_sources([source]), tmp_path / "out", shard_bytes=20_000)
    prepare(find_sources([source]), tmp_path / "straight")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_a_file_that_vanishes_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["x"] * 100)
    (tmp_path / "b.txt").write_text("y")
    sources = find_sources([tmp_path])
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt: No such file"):
        prepare(sources, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.jsonl", "b.txt"])
def test_a_file_that_changes_after_it_was_listed_is_named(tmp_path, name):
    write_jsonl(tmp_path / "a.jsonl", ["x"] * 100)
    (tmp_path / "b.txt").write_text("y")
    sources = find_sources([tmp_path])
    with (tmp_path / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=rf"{name} has changed since it was listed"):
        prepare(sources, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.jsonl", "b.txt"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, name, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ["x"] * 100)
    (tmp_path / "b.txt").write_text("y")
    sources = find_sources([tmp_path])
    encode = ByteTokenizer.encode_bytes

    def change(self, data):
        (tmp_path / name).write_text("z")
        return encode(self, data)

    monkeypatch.setattr(ByteTokenizer, "encode_bytes", change)
    with pytest.raises(UserError, match=rf"{name} has changed since it was listed"):
        prepare(sources, tmp_path / "out")
