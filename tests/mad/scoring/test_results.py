import contextlib
import json
import re
import resource

import pytest

from hybridtron.errors import UserError
from hybridtron.mad.scoring.results import RESULTS, key, opened_for_adding, read_rows
from tests.mad.small import row


def written(folder, *rows):
    with opened_for_adding(folder) as results:
        results.add(rows)
    return folder / RESULTS


def test_what_is_added_is_read_again(tmp_path):
    rows = [row(seed=seed) for seed in range(3)]
    written(tmp_path / "new" / "folder", *rows)
    assert read_rows(tmp_path / "new" / "folder") == (rows, [])


def test_rows_of_a_known_key_are_not_added_again(tmp_path):
    file = written(tmp_path, row())
    written(tmp_path, row(test_micro=0.9), row(seed=1))
    assert len(file.read_text().splitlines()) == 2
    assert read_rows(tmp_path)[0] == [row(), row(seed=1)]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"lr": 5e-4},
        {"weight_decay": 0.1},
        {"task": "memorization"},
        {"protocol": "q"},
        {"fingerprint": "g"},
        {"setting": {"vocab_size": 32}},
    ],
)
def test_a_key_changes_with_what_is_trained(changed):
    assert key(row(**changed)) != key(row())


def test_a_last_line_that_was_cut_short_is_named_dropped_and_written_over(tmp_path):
    file = written(tmp_path, row())
    whole = file.read_bytes()
    for length in (1, 30, len(whole) - 2):
        file.write_bytes(whole + whole[:length])
        assert read_rows(tmp_path) == ([row()], [f"{file}, line 2: cut short, left out"])
        with opened_for_adding(tmp_path) as results:
            assert results.warnings == [f"{file}, line 2: cut short, left out"]
            results.add([row(seed=1)])
        assert read_rows(tmp_path) == ([row(), row(seed=1)], [])
        file.write_bytes(whole)


def test_a_last_row_that_lacks_nothing_but_its_line_end_counts(tmp_path):
    file = written(tmp_path, row(), row(seed=1))
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert read_rows(tmp_path) == ([row(), row(seed=1)], [])
    written(tmp_path, row(seed=2))
    assert read_rows(tmp_path) == ([row(), row(seed=1), row(seed=2)], [])


def test_a_last_line_that_is_whole_but_no_row_is_named_and_stays(tmp_path):
    file = written(tmp_path, row())
    wrong = json.dumps(row(seed=1, test_micro=7)).encode()
    file.write_bytes(file.read_bytes() + wrong)
    for _ in range(2):
        assert read_rows(tmp_path)[1] == [f"{file}, line 2: damaged (test_micro is not what training gives), left out"]
        written(tmp_path, row(seed=2))
    assert wrong + b"\n" in file.read_bytes()


@pytest.mark.parametrize(
    "damage", [b"\0" * 40, b"{", b"[]", b"{}", json.dumps(row(seed="1")).encode(), b"\xff\xfe", b"", b"[" * 100_000]
)
def test_a_damaged_line_is_named_and_the_good_rows_are_kept(tmp_path, damage):
    file = written(tmp_path, row(), row(seed=1))
    first, second, _ = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([first, damage, second, b""]))
    rows, warnings = read_rows(tmp_path)
    assert rows == [row(), row(seed=1)]
    assert len(warnings) == 1
    assert re.fullmatch(rf"{file}, line 2: damaged \(.+\), left out", warnings[0])
    written(tmp_path, row(seed=2))
    assert len(read_rows(tmp_path)[0]) == 3


BASELINE = row()["setting"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "compresion"},
        {"setting": {**BASELINE, "vocab": 3}},
        {"setting": {"vocab_size": 16}},
        {"setting": {**BASELINE, "seq_len": 0}},
        {"test_micro": float("nan")},
        {"test_macro": 55.0},
        {"select_micro": -0.1},
        {"select_macro": True},
        {"accuracy": "mean"},
        {"lr": float("inf")},
        {"lr": 10**400},
        {"seed": True},
        {"notes": [1]},
        {"planned_steps": None},
        {"batch_size": "x"},
        {"num_cells": 0},
        {"parameters": -1},
        {"curve": []},
        {"curve": [[1, 2.0, 0.5]]},
        {"curve": [[1, 2.0, 0.5, 1.5]]},
        {"curve": [[1, 2.0, None, 0.5]]},
        {"curve": [{"step": 1}]},
    ],
    ids=str,
)
def test_a_row_that_no_training_gives_is_a_damaged_line(tmp_path, wrong):
    file = written(tmp_path, row())
    with file.open("a") as stream:
        stream.write(json.dumps(row(seed=1, **{k: v for k, v in wrong.items() if k != "seed"}) | wrong) + "\n")
    rows, (warning,) = read_rows(tmp_path)
    assert rows == [row()]
    assert warning.startswith(f"{file}, line 2: damaged (")
    assert next(iter(wrong)) in warning or warning.count(": expected") == 1


def test_a_diverged_loss_is_no_damage(tmp_path):
    diverged = row(test_loss=None, select_loss=None, stopped="diverged", curve=[[5, None, 0.1, 0.1]])
    written(tmp_path, diverged)
    assert read_rows(tmp_path) == ([diverged], [])


@contextlib.contextmanager
def files_of_at_most(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_keeps_the_rows_that_fitted(tmp_path):
    file = written(tmp_path, row())
    with (
        opened_for_adding(tmp_path) as results,
        files_of_at_most(file.stat().st_size + 100),
        pytest.raises(UserError, match=rf"out {tmp_path}: cannot be written \(File too large\)"),
    ):
        results.add([row(seed=1)])
    assert read_rows(tmp_path) == ([row()], [f"{file}, line 2: cut short, left out"])
    written(tmp_path, row(seed=1))
    assert read_rows(tmp_path) == ([row(), row(seed=1)], [])


def test_results_that_are_no_file_are_refused(tmp_path):
    (tmp_path / RESULTS).mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\)"), opened_for_adding(tmp_path):
        pass


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: has no results.jsonl"):
        read_rows(tmp_path)


def test_one_process_writes_at_a_time(tmp_path):
    with opened_for_adding(tmp_path), pytest.raises(UserError, match="another process"), opened_for_adding(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), opened_for_adding(tmp_path / "file" / "below"):
        pass
