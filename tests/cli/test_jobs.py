"""Workers of a search and tasks of MAD as jobs of a launch file."""

from __future__ import annotations

import json

import pytest
import yaml

SEARCH = {
    "name": "tiny",
    "evaluations": 8,
    "space": {"blocks": ["attn", "mamba", "mlp"], "layers": 3},
    "evaluator": {"type": "function"},
    "engine": {"type": "random"},
}


@pytest.fixture
def launch(tmp_path):
    file = tmp_path / "launch.yaml"
    file.write_text("cluster: local\nsnapshot_code: false\n")
    return file


def test_workers_of_a_search(tmp_path, hybridtron, launch):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    done = hybridtron("search", "search.yaml", "evaluations=6", "--workers", "2", "--launch", launch, "--json")
    assert done.returncode == 0, done.stderr
    assert "2/2 worker-" in done.stderr
    folder = tmp_path / "checkpoints" / "search-tiny"
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert sum(row["row"] == "result" for row in rows) == 6
    assert json.loads(done.stdout) == json.loads((folder / "result.json").read_text())
    assert {path.name for path in (tmp_path / "checkpoints" / "search-tiny-jobs").glob("worker-*")} == {
        "worker-0", "worker-1",
    }  # fmt: skip


def test_tasks_of_mad_are_jobs_with_the_results_of_a_plain_run(tmp_path, hybridtron, launch):
    run = ["mad", "run", "--preset", "smoke", "--steps", "2", "--nproc", "1", "--pattern", "mh-attention swiglu"]
    run += ["--tasks", "compression", "memorization", "--json"]
    jobs = hybridtron(*run, "--launch", launch, "--out", "jobs")
    assert jobs.returncode == 0, jobs.stderr
    assert "2/2" in jobs.stderr
    plain = hybridtron(*run, "--out", "plain")
    assert json.loads(jobs.stdout) == json.loads(plain.stdout)
    again = hybridtron(*run, "--launch", launch, "--out", "jobs")
    assert json.loads(again.stdout) == json.loads(jobs.stdout)
    assert "2 jobs" not in again.stderr
