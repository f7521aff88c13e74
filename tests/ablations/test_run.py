"""A study runs, goes on with what is missing, and its results are those of plain runs."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time

import pytest
import yaml

import hybridtron as ht
from hybridtron.ablations.config import AblationConfig
from hybridtron.ablations.run import read_ablation, report_ablation
from hybridtron.config.load import load
from hybridtron.laws.data.read import read_runs
from hybridtron.training.callbacks.metrics import read_metrics
from tests import warm
from tests.ablations.studies import STEPS, plan, study
from tests.conftest import command, environment

TIMES = {"tokens_per_s", "flops_per_s", "mfu", "time"}


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_a_study_equals_plain_runs_and_trains_only_what_is_missing(tiny, hybridtron):
    seen = []
    found = ht.ablate(study(tiny), on_progress=lambda progress: seen.append((progress.finished, progress.total)))
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert len(found.rows) == 4
    assert {row["steps"] for row in found.rows} == {STEPS}
    folder = tiny.parent / "study"

    run = found.plan.runs[0]
    plain = tiny.parent / "plain"
    done = hybridtron("train", folder / "configs" / f"{run.name}.yaml", f"folder={plain}")
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(run.config.run_folder / "metrics.jsonl")
    assert without_times(metrics) == without_times(read_metrics(plain / "metrics.jsonl"))
    assert found.rows[0]["loss"] == json.loads((plain / "summary.json").read_text())["valid_loss"]

    (run.config.run_folder / "summary.json").unlink()  # as of a run that was killed at its end
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/metrics.jsonl")}
    more = study(tiny, seeds=[0, 1, 2])
    again = ht.ablate(more)
    assert [row["loss"] for row in again.rows if row["seed"] < 2] == [row["loss"] for row in found.rows]
    assert len(again.rows) == 6
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == set()  # the first one only lacked its closing report


def test_results_are_read_by_the_laws_and_shown(tiny, hybridtron):
    file = tiny.parent / "study.yaml"
    axes = {"width": {"type": "grid", "key": "model.hidden_size", "values": [32, 64]}}
    file.write_text(yaml.safe_dump(study(tiny, axes=axes, price_per_device_hour=2.0)))
    launch = tiny.parent / "local.yaml"
    launch.write_text("cluster: local\n")
    listed = hybridtron("ablate", file, "--dry-run", "--launch", launch)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("missing") == 4
    assert listed.stdout.splitlines()[-1].startswith("4 jobs (local)")
    assert not (tiny.parent / "study").exists()
    done = hybridtron("ablate", file)
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stderr
    for text in ("2 cells x 2 seeds = 4 runs: 4 measured", "width (model.hidden_size)", "paired t-test over 2 seeds"):
        assert text in done.stdout
    folder = tiny.parent / "study"
    with (folder / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["cell"], row["seed"]) for row in rows] == [
        ("width-32", "0"), ("width-32", "1"), ("width-64", "0"), ("width-64", "1"),
    ]  # fmt: skip
    assert all(float(row["cost"]) == pytest.approx(2 * float(row["device_hours"])) for row in rows)
    runs = read_runs([folder / "results.csv"], ["n_params", "tokens", "flops", "loss"], ["total_state", "arch"])
    assert len(runs) == 4
    assert (runs["loss"] > 0).all()
    page = (folder / "report.html").read_text()
    assert "data:image/png" in page
    assert "http" not in page.replace("http-equiv", "")
    result = json.loads((folder / "result.json").read_text())
    assert result["runs"] == {"planned": 4, "finished": 4, "failed": 0, "missing": 0, "of_earlier_forms": 0}
    as_json = hybridtron("ablate", file, "--json")
    assert json.loads(as_json.stdout) == result


def test_an_interrupt_saves_and_the_same_command_goes_on(tiny, hybridtron):
    file = tiny.parent / "study.yaml"
    long = ["train.steps=600", "schedule.warmup_steps=1", "train.log_every=1"]
    file.write_text(yaml.safe_dump(study(tiny, seeds=[0], overrides=long, max_parallel=2)))
    process = warm.Popen(
        command("ablate", file), cwd=tiny.parent, env=environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    cells = tiny.parent / "study" / "cells"
    deadline = time.monotonic() + 120
    while not any(len(read_metrics(path)) > 3 for path in cells.glob("*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a condition with a deadline
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in text
    config = load(file, (), AblationConfig)
    assert read_ablation(config).status.finished == {}
    begun = [path for path in cells.iterdir() if (path / "latest").is_file()]
    assert begun  # at least the run whose steps were seen is saved

    short = yaml.safe_load(file.read_text())
    done = hybridtron("ablate", file)
    assert done.returncode == 0, done.stderr
    ablation = read_ablation(load(short, (), AblationConfig))
    assert len(ablation.rows) == 2
    for path in begun:
        steps = [row["step"] for row in read_metrics(path / "metrics.jsonl")]
        assert steps == list(range(1, 601))


def test_a_run_that_fails_is_listed_and_tried_again(tiny):
    diverging = {"type": "grid", "key": "optimizer.lr", "values": [3e-3, 1e30]}
    short = ["train.steps=4", "schedule.warmup_steps=0", "train.max_skipped_steps=1", "optimizer.clip_grad=0"]
    config = study(tiny, seeds=[0], axes={"lr": diverging}, overrides=short)
    found = ht.ablate(config)
    assert len(found.rows) == 1
    ((run, cause),) = found.failures
    assert run.cell.name == "lr-1e+30"
    assert "non-finite loss or gradient" in cause
    page = (tiny.parent / "study" / "report.html").read_text()
    assert "non-finite loss or gradient" in page
    assert "failed runs" in str(found) or "1 failed" in str(found)
    seen = []
    ht.ablate(config, on_progress=lambda progress: seen.append(progress.last))
    assert {name for name, _ in filter(None, seen)} == {run.name}


def test_an_earlier_form_of_a_study_stays_and_is_not_counted(tiny):
    ht.ablate(study(tiny, seeds=[0]))
    found, page = report_ablation(load(study(tiny, seeds=[1]), (), AblationConfig))
    assert (found.others, found.rows, found.missing) == (2, [], 2)
    assert page.is_file()


def test_a_folder_of_something_else_is_refused(tiny):
    folder = tiny.parent / "study"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ht.UserError, match=r"holds something else \(notes.txt\)"):
        ht.ablate(study(tiny))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_study_that_another_process_begins_can_be_read(tiny, monkeypatch):
    from hybridtron.ablations import study as module

    def write_while_another_reads(path, content, write=module.replace_file):
        path.with_name(path.name + ".new").write_text("half of the")
        assert read_ablation(load(study(tiny), (), AblationConfig)).rows == []
        path.with_name(path.name + ".new").unlink()
        write(path, content)

    monkeypatch.setattr(module, "replace_file", write_while_another_reads)
    begun = module.Study(plan(tiny))
    begun.open()
    begun.close()
    assert sorted(path.name for path in begun.folder.iterdir()) == [".lock", "ablation.yaml", "configs"]


def test_one_process_at_a_time_runs_a_study(tiny):
    from hybridtron.ablations.study import Study
    from tests.ablations.studies import plan

    first = Study(plan(tiny))
    first.open()
    try:
        with pytest.raises(ht.UserError, match="another process runs it"):
            ht.ablate(study(tiny))
    finally:
        first.close()


def test_jobs_of_a_launch_file_give_the_same_results(tiny):
    here = ht.ablate(study(tiny, seeds=[0]))
    jobs = ht.ablate(
        study(tiny, seeds=[0], folder=str(tiny.parent / "jobs"), max_parallel=2), launch={"snapshot_code": False}
    )
    assert [row["loss"] for row in jobs.rows] == [row["loss"] for row in here.rows]
    assert [row["run"] for row in jobs.rows] == [row["run"] for row in here.rows]
