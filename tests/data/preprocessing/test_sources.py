import os
import time

import pytest

from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    for name in ("b.txt", "a/z.txt", "a.jsonl", "c.jsonl.zst", "d.jsonl.gz", "notes.md", "a/picture.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def names(sources):
    return [source.name for source in sources.files]


def test_a_folder_is_walked_in_the_order_of_relative_paths_and_nothing_is_passed_over_in_silence(folder):
    os.symlink(folder / "a", folder / "link")
    sources = find_sources([folder])
    assert names(sources) == ["a.jsonl", "a/z.txt", "b.txt", "c.jsonl.zst", "d.jsonl.gz"]
    assert [path.name for path in sources.ignored] == ["picture.png", "link", "notes.md"]


def test_prepared_token_files_among_the_texts_are_not_taken_for_text(folder):
    before = find_sources([folder])
    prepare(before, folder / "tokens")
    (folder / "unfinished" / ".partial").mkdir(parents=True)
    (folder / "unfinished" / ".partial" / "damaged.jsonl").touch()
    (folder / "unfinished" / ".partial" / "lock").touch()
    assert find_sources([folder]) == before


def test_a_folder_of_another_program_by_the_name_of_the_work_folder_hides_nothing(folder):
    (folder / "download" / ".partial").mkdir(parents=True)
    (folder / "download" / "text.txt").write_text("a")
    (folder / "download" / ".partial" / "x.tmp").touch()
    sources = find_sources([folder / "download"])
    assert names(sources) == ["text.txt"]
    assert [path.name for path in sources.ignored] == ["x.tmp"]
    with pytest.raises(UserError, match="is not empty"):
        prepare(sources, folder / "download")
    assert (folder / "download" / ".partial" / "x.tmp").exists()


def test_inputs_keep_the_order_in_which_they_are_given(folder):
    assert names(find_sources([folder / "b.txt", folder / "a"])) == ["b.txt", "z.txt"]


def test_other_suffixes_can_be_text(folder):
    assert names(find_sources([folder], text_suffixes=(".md",))) == ["a.jsonl", "c.jsonl.zst", "d.jsonl.gz", "notes.md"]


def test_files_for_validation_are_taken_out_of_the_inputs(folder):
    sources = find_sources([folder], valid=[folder / "b.txt", folder / "a"])
    assert {source.name: source.split for source in sources.files} == {
        "a.jsonl": "train",
        "c.jsonl.zst": "train",
        "d.jsonl.gz": "train",
        "b.txt": "valid",
        "z.txt": "valid",
    }


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["nope"], {}, "no such file or folder: .*nope"),
        (["notes.md"], {}, r"notes.md: unknown suffix; expected one of \.txt \.jsonl"),
        ([".", "b.txt"], {}, "b.txt is given twice"),
        (["b.txt"], {"valid": ["b.txt"]}, "no file left for train"),
        (["."], {"valid": ["empty"]}, "no file left for valid"),
        (["empty"], {}, "no file left for train"),
        (
            ["code"],
            {},
            r"no file left for train in .*\(text_suffixes names others\); of other suffixes: 1, such as a.py",
        ),
        (["."], {"text_suffixes": ["md"]}, "text_suffixes = md: expected the suffix"),
    ],
)
def test_what_cannot_be_a_corpus(folder, inputs, options, message):
    (folder / "empty").mkdir()
    (folder / "code").mkdir()
    (folder / "code" / "a.py").touch()
    options = {key: [folder / v for v in values] if key == "valid" else values for key, values in options.items()}
    with pytest.raises(UserError, match=message):
        find_sources([folder / name for name in inputs], **options)


def test_thousands_of_ignored_files_take_no_longer_with_validation_files_inside(tmp_path):
    (tmp_path / "valid").mkdir()
    for number in range(4000):
        (tmp_path / "valid" / f"{number}.md").touch()
    for name in ("a.txt", "valid/b.txt"):
        (tmp_path / name).write_text("x")
    counts = []
    began = time.process_time()
    sources = find_sources([tmp_path], valid=[tmp_path / "valid"], on_files=counts.append)
    assert time.process_time() - began < 2  # comparing each with all takes 4 s
    assert len(sources.ignored) == 4000
    assert [(source.name, source.split) for source in sources.files] == [("a.txt", "train"), ("b.txt", "valid")]
    assert counts == [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]
