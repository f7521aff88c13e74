import multiprocessing
import os
import random
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from hybridtron.errors import UserError
from hybridtron.mad.presets import preset
from hybridtron.mad.results import RESULTS, read_rows
from hybridtron.mad.score import scores
from hybridtron.mad.suite import SuiteFailed, chosen_settings, run_suite
from tests.conftest import command, environment
from tests.mad.small import ARCHITECTURE, PRESET, SETTINGS

KILLS = 20


def suite(out, seeds=(0, 1), processes=1, **more):
    return run_suite(ARCHITECTURE, PRESET, SETTINGS, seeds, out, processes=processes, **more)


def table(folder):
    return [score.as_json() for score in scores(read_rows(folder)[0])]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    suite(folder)
    return folder


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


def test_twenty_kills_at_random_moments_change_nothing(undisturbed, tmp_path):
    """Each kill hits a process that has just begun to train, or is long at it, or is writing."""
    rng = random.Random(0)
    fork = multiprocessing.get_context("fork")
    survived = []
    for _ in range(KILLS):
        process = fork.Process(target=suite, args=(tmp_path,))
        process.start()
        process.join(timeout=rng.uniform(0.0, 0.4))
        process.kill()
        process.join()
        if (tmp_path / RESULTS).exists():
            survived.append(len(read_rows(tmp_path)[0]))
    assert survived == sorted(survived)
    suite(tmp_path)
    assert table(tmp_path) == table(undisturbed)
    assert len((tmp_path / RESULTS).read_text().splitlines()) == len(SETTINGS) * 4


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
    assert warnings == [f"{tmp_path / RESULTS}, line 6: damaged, left out"]
    assert table(tmp_path) == table(undisturbed)


def test_rows_do_not_depend_on_which_seeds_are_trained_together(undisturbed, tmp_path):
    suite(tmp_path, seeds=[1])
    suite(tmp_path, seeds=[0, 1])
    assert table(tmp_path) == table(undisturbed)


def test_a_process_that_dies_is_reported_and_what_is_done_stays(tmp_path):
    def end_a_worker(progress):
        if progress.done == 2:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(SuiteFailed, match="ended with code -9"):
        suite(tmp_path, processes=2, on_unit=end_a_worker)
    assert len(read_rows(tmp_path)[0]) >= 2 * 4


def test_workers_end_with_a_killed_parent(tmp_path):
    arguments = ["mad", "run", "--layers", "mh-attention", "--preset", "smoke", "--nproc", "2", "--out", "out",
                 "--tasks", "compression", "memorization", "in-context-recall", "--set", "seq_len=16",
                 "--steps", "100000"]  # fmt: skip
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert process.poll() is None
        workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert len(gone) == 2


def test_the_protocol_and_its_parts_are_chosen():
    assert len(chosen_settings(preset("paper"), [], {})) == 66
    assert len(chosen_settings(preset("search"), [], {})) == 6
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
