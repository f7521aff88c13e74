import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hybridtron.errors import UserError
from hybridtron.mad.scoring.aggregate import scores
from hybridtron.mad.scoring.results import RESULTS, key, read_rows
from hybridtron.mad.training.presets import preset
from hybridtron.mad.training.suite import SuiteFailed, chosen_settings, run_suite
from tests import warm
from tests.conftest import command, environment
from tests.mad.small import ARCHITECTURE, PRESET, SETTINGS

KILLS = 20
ROWS = len(SETTINGS) * 2 * 2  # cells and seeds


def suite(out, seeds=(0, 1), processes=1, **more):
    return run_suite(ARCHITECTURE, PRESET, SETTINGS, seeds, out, processes=processes, **more)


def table(folder):
    return [score.as_json() for score in scores(read_rows(folder)[0])]


def count_lines(folder):
    file = folder / RESULTS
    return file.read_bytes().count(b"\n") if file.exists() else 0


def call_after(number, act):
    """Act at a call of a function in this thread, after so many others: a moment that no machine's speed moves."""
    left = number

    def see(frame, event, argument):
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            act()

    sys.setprofile(see)


def killed_suite(out, rows, calls=0, processes=1):
    """Kill a suite so many calls of functions after it has added so many rows; return how many the folder then has."""
    before = count_lines(out)

    def kill_from_here(*_):
        if sys.getprofile() is None and count_lines(out) >= before + rows:
            call_after(calls, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def killed():
        kill_from_here()
        suite(out, processes=processes, on_step=kill_from_here)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    return count_lines(out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    suite(folder)
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """How many functions are called for a row, about; other versions of torch call more or fewer."""
    called = 0

    def see(frame, event, argument):
        nonlocal called
        called += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        suite(tmp_path_factory.mktemp("counted"))
    finally:
        sys.setprofile(None)
    return called / ROWS


def test_every_setting_cell_and_seed_has_a_row(undisturbed):
    rows, warnings = read_rows(undisturbed)
    assert len(rows) == len(SETTINGS) * 2 * 2
    assert not warnings
    assert {row["seed"] for row in rows} == {0, 1}
    assert len({(row["lr"], row["weight_decay"]) for row in rows}) == 2
    (found,) = table(undisturbed)
    assert {task: one["settings"] for task, one in found["tasks"].items()} == {
        "compression": 4, "selective-copying": 4, "in-context-recall": 4,
    }  # fmt: skip


def test_twenty_kills_at_random_moments_change_nothing(undisturbed, calls, tmp_path):
    """Each kill hits a process that has just begun, or trains, or has just written a row, or is writing one."""
    rng = random.Random(0)
    survived = []
    for kill in range(KILLS):
        rows = kill % 2
        survived.append(killed_suite(tmp_path, rows, int(rng.uniform(0, 4 - 3 * rows) * calls)))
    assert survived == sorted(survived)
    assert len({rows for rows in survived if 0 < rows < ROWS}) >= 5
    suite(tmp_path)
    assert table(tmp_path) == table(undisturbed)
    assert same_rows(tmp_path, undisturbed)
    assert count_lines(tmp_path) == ROWS


def test_kills_of_a_suite_in_two_processes_change_nothing(undisturbed, tmp_path):
    survived = [killed_suite(tmp_path, rows, processes=2) for rows in (1, 6)]
    assert 0 < survived[0] < survived[1] < ROWS
    suite(tmp_path)
    assert same_rows(tmp_path, undisturbed)
    assert count_lines(tmp_path) == ROWS


def same_rows(*folders):
    """Whether the folders have the same rows in some order, but for the times they took."""
    found = [{key(row): row | {"seconds": None} for row in read_rows(folder)[0]} for folder in folders]
    return found[0] == found[1]


def test_a_row_is_on_disk_when_its_cell_has_ended_and_not_first_when_its_setting_has(tmp_path):
    found = []
    suite(tmp_path, on_step=lambda unit, steps: found.append((count_lines(tmp_path), steps.done / steps.planned)))
    written = {rows: share for rows, share in reversed(found) if rows}  # the first after each row
    assert sorted(written) == list(range(1, ROWS + 1))
    assert [written[rows] for rows in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("lost", [[5], [0, 3], [4, 5, 6]])
def test_only_the_cells_whose_rows_are_missing_are_trained_again(undisturbed, tmp_path, lost):
    lines = (undisturbed / RESULTS).read_bytes().splitlines(keepends=True)
    (tmp_path / RESULTS).write_bytes(b"".join(line for i, line in enumerate(lines) if i not in lost))
    planned = []
    suite(tmp_path, on_step=lambda unit, steps: planned.append(steps.planned))
    assert set(planned) == {PRESET.max_steps * len(lost)}
    assert same_rows(tmp_path, undisturbed)


def test_a_kill_within_any_byte_of_the_last_rows_changes_nothing(undisturbed, tmp_path):
    whole = (undisturbed / RESULTS).read_bytes()
    for cut in random.Random(1).sample(range(len(whole) - 3000, len(whole)), 5):
        (tmp_path / RESULTS).write_bytes(whole[:cut])
        suite(tmp_path)
        assert table(tmp_path) == table(undisturbed)


def test_a_finished_suite_trains_nothing(undisturbed):
    before = (undisturbed / RESULTS).read_bytes()
    suite(undisturbed, on_unit=lambda progress: pytest.fail("trained again"))
    assert (undisturbed / RESULTS).read_bytes() == before


def test_processes_give_the_same_table_as_one(undisturbed, tmp_path):
    done = []
    suite(tmp_path, processes=2, on_unit=done.append)
    assert [(progress.done, progress.total) for progress in done] == [(i, 12) for i in range(1, 13)]
    assert table(tmp_path) == table(undisturbed)


def test_a_damaged_row_is_trained_again_and_named(undisturbed, tmp_path):
    lines = (undisturbed / RESULTS).read_bytes().splitlines(keepends=True)
    lines[5] = b"{damaged}\n"
    (tmp_path / RESULTS).write_bytes(b"".join(lines))
    warnings = []
    suite(tmp_path, on_warning=warnings.append)
    assert warnings == [f"{tmp_path / RESULTS}, line 6: damaged (no JSON), left out"]
    assert table(tmp_path) == table(undisturbed)


def test_rows_do_not_depend_on_which_seeds_are_trained_together(undisturbed, tmp_path):
    suite(tmp_path, seeds=[1])
    suite(tmp_path, seeds=[0, 1])
    assert table(tmp_path) == table(undisturbed)


def test_a_process_that_dies_is_reported_and_what_is_done_stays(tmp_path):
    def end_a_worker(progress):
        if progress.done == 2:
            for worker in multiprocessing.active_children():
                worker.kill()

    with pytest.raises(SuiteFailed, match="ended with code -9"):
        suite(tmp_path, processes=2, on_unit=end_a_worker)
    assert len(read_rows(tmp_path)[0]) >= 2 * 4


def test_workers_end_with_a_killed_parent(tmp_path):
    arguments = ["mad", "run", "--layers", "mh-attention", "--preset", "smoke", "--nproc", "2", "--out", "out",
                 "--tasks", "compression", "memorization", "in-context-recall", "--set", "seq_len=16",
                 "--steps", "100000"]  # fmt: skip
    process = warm.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert process.poll() is None
        workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=240)
    for worker in alive:
        worker.kill()
    assert len(gone) == 2


def test_the_protocol_and_its_parts_are_chosen():
    assert len(chosen_settings(preset("paper"), None, {})) == 66
    assert len(chosen_settings(preset("search"), None, {})) == 6
    assert len(chosen_settings(preset("paper"), ["memorization", "memorization"], {})) == 6
    assert chosen_settings(preset("paper"), ["compression"], {"vocab_size": 5}) == [
        ("compression", {"vocab_size": 5, "seq_len": 32, "num_train_examples": 12800})
    ]
    with pytest.raises(UserError, match="nearest: memorization"):
        chosen_settings(preset("paper"), ["memorisation"], {})
    with pytest.raises(UserError, match="frac_noise"):
        chosen_settings(preset("paper"), ["compression"], {"frac_noise": 0.1})


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_suite(ARCHITECTURE, PRESET, SETTINGS[:1], [0], Path("here"))
    assert len(read_rows(tmp_path / "here")[0]) == 2
