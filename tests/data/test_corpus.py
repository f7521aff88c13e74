"""Preparing a corpus: what comes out, what is reported, what survives a kill."""

import base64
import codecs
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import zstandard

from hybridtron.data import corpus, shards, windows
from hybridtron.data import documents as documents_module
from hybridtron.data import text as text_module
from hybridtron.data.corpus import prepare
from hybridtron.data.indexed_format import check
from hybridtron.data.report import read_corpus_report, read_report
from hybridtron.data.sources import find_sources
from hybridtron.data.tokenizer import ByteTokenizer, load
from hybridtron.errors import UserError
from hybridtron.processes import WorkerDied

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "いろはにほへと ちりぬるを",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
FILES = ("train.bin", "train.idx", "valid.bin", "valid.idx", "damaged.jsonl", "sources.jsonl", "report.json")


def document(number: int) -> str:
    """Text that no other number has."""
    return f"{number}: " + " ".join(SENTENCES[(number * 7 + k) % len(SENTENCES)] for k in range(1 + number % 4))


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(documents)))
    return path


def documents_in(prefix: Path, tokenizer: str = "byte") -> list[str]:
    """The documents of a split, as megatron-core's layout divides them."""
    loaded = load(tokenizer)
    stream = check(prefix).tokens()
    ends = np.flatnonzero(stream == loaded.eod)
    assert ends[-1] == len(stream) - 1
    assert len(ends) == check(prefix).num_documents
    return [loaded.decode(part) for part in np.split(stream, ends[:-1] + 1)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def mixed(tmp_path):
    """Two text files, plain and compressed lines, and a file of another kind."""
    folder = tmp_path / "in"
    (folder / "books").mkdir(parents=True)
    (folder / "books" / "one.txt").write_text("first\nbook")
    (folder / "books" / "two.txt").write_text("second\nbook")
    (folder / "cover.png").write_bytes(b"\x89PNG")
    write_jsonl(folder / "a.jsonl", [document(i) for i in range(40)])
    plain = write_jsonl(tmp_path / "lines", [document(i) for i in range(100, 140)]).read_bytes()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    plain = write_jsonl(tmp_path / "lines", [document(i) for i in range(200, 240)]).read_bytes()
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(plain))
    return folder


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
    assert check(tmp_path / "out" / "train").tokens().tolist() == [*"Grüße".encode("latin-1"), 256]
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


PROGRAM = """
import json, sys
from multiprocessing import active_children
from pathlib import Path
from hybridtron.data import corpus, shards, windows
from hybridtron.data import documents as documents_module
from hybridtron.data import text as text_module
from hybridtron.data.corpus import prepare
from hybridtron.data.sources import find_sources

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
    deadline = time.monotonic() + 30
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

    monkeypatch.setattr(corpus, "_publish", stop)
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
    stream = check(tmp_path / "out" / "train").tokens()
    tokenizer = load(spec)
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
from hybridtron.data.corpus import prepare
from hybridtron.data.sources import find_sources

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
