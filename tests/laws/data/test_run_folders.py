"""Run folders of this project as rows for a law."""

import json

import pytest

from hybridtron.accounting.describe import describe
from hybridtron.errors import UserError
from hybridtron.laws.data.read import read_runs
from hybridtron.training.run_folder.folder import RunFolder
from tests.training.runs import resolved_tiny

NEEDED = ("n_params", "tokens", "flops", "loss", "total_state")


@pytest.fixture
def run_folder(tmp_path):
    """Writes a run folder as training does, without training."""

    def write(name, summary=None, rows=(), **model):
        config = resolved_tiny(**model)
        folder = RunFolder(tmp_path / "runs" / name)
        assert folder.lock()
        folder.create(config, {})
        folder.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if summary is not None:
            (folder.path / "summary.json").write_text(json.dumps(summary))
        return folder.path, config

    return write


def test_a_finished_run_gives_its_account_and_its_held_out_loss(run_folder):
    path, config = run_folder("a", {"step": 20, "tokens": 2560, "loss": 4.1, "valid_loss": 4.2})
    runs, account = read_runs([path], NEEDED), describe(config.model, 32).as_json()
    assert runs["n_params"][0] == account["parameters"]["total"]
    assert runs["flops"][0] == account["flops_per_token"]["training"] * 2560
    assert runs["total_state"][0] == account["state_size"]
    assert (runs["tokens"][0], runs["loss"][0]) == (2560, 4.2)
    assert runs["arch"][0] == "mamba2+swiglu+attention+mlp"


def test_laws_of_experts_find_the_active_parameters_of_a_run(run_folder):
    path, config = run_folder("a", {"tokens": 100, "valid_loss": 4.2})
    runs = read_runs([path], ("n_params", "active_params", "tokens", "loss"), at_most={"active_params": "n_params"})
    assert runs["active_params"][0] == describe(config.model, 32).as_json()["parameters"]["active"]


def test_a_folder_of_runs_gives_one_row_each(run_folder):
    path, _ = run_folder("a", {"tokens": 100, "valid_loss": 4.2})
    run_folder("b", {"tokens": 200, "valid_loss": 4.0}, hidden_size=64)
    runs = read_runs([path.parent], NEEDED)
    assert list(runs["run"]) == ["a", "b"]
    assert runs["n_params"][1] > runs["n_params"][0]


def test_the_context_of_attentions_state_is_declared(run_folder):
    path, config = run_folder("a", {"tokens": 100, "valid_loss": 4.2})
    own, longer = read_runs([path], NEEDED), read_runs([path], NEEDED, context=4096)
    assert longer["total_state"][0] == describe(config.model, 4096).state_size > own["total_state"][0]
    assert longer["flops"][0] == own["flops"][0]
    assert "state of run folders is counted at each run's seq_len" in own.notes
    assert "state of run folders is counted at a context of 4096 tokens" in longer.notes


def test_an_unfinished_run_stands_where_its_last_row_is(run_folder):
    path, _ = run_folder("a", rows=[{"step": 1, "tokens": 64, "loss": 5.0}, {"step": 2, "tokens": 128, "loss": 4.5}])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tok')
    reading = read_runs([path], NEEDED)
    assert (reading["tokens"][0], reading["loss"][0]) == (128, 4.5)
    assert [warning.split(":")[0] for warning in reading.warnings] == ["unfinished", "training loss"]


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"tokens": 100, "valid_loss": None, "loss": None}, "loss None after 100 tokens"),
        ({"tokens": 0, "valid_loss": 4.0}, "loss 4.0 after 0 tokens"),
        (None, "no rows"),
    ],
)
def test_a_run_without_loss_or_tokens_is_named(run_folder, summary, said):
    path, _ = run_folder("a", summary)
    with pytest.raises(UserError, match=rf"runs/a.*: {said}"):
        read_runs([path], NEEDED)


def test_diverged_and_just_begun_runs_are_left_out_by_name(run_folder):
    good, _ = run_folder("good", {"tokens": 100, "valid_loss": 4.2})
    diverged, _ = run_folder("diverged", {"tokens": 100, "valid_loss": None, "loss": None})
    begun, _ = run_folder("begun")
    damaged, _ = run_folder("damaged", [])
    for sources in ([good.parent], [good, diverged, begun, damaged]):
        runs = read_runs(sources, NEEDED)
        assert list(runs["run"]) == ["good"]
        left_out = [warning for warning in runs.warnings if warning.startswith("left out: ")]
        assert len(left_out) == len(runs.warnings) == 3
        assert all(any(str(path) in text for text in left_out) for path in (diverged, begun, damaged))


def test_a_filter_leaves_out_runs_before_they_are_read(run_folder):
    good, _ = run_folder("good", {"tokens": 100, "valid_loss": 4.2})
    old, _ = run_folder("old", {"tokens": 100, "valid_loss": 4.2})
    (old / "config.yaml").write_text("of: an older version\n")
    with pytest.raises(UserError, match="runs/old/config"):
        read_runs([good.parent], NEEDED)
    assert list(read_runs([good.parent], NEEDED, where=[("run!", "old")])["run"]) == ["good"]
    with pytest.raises(UserError, match=r"filter run=none leaves no rows .* expected good"):
        read_runs([good], NEEDED, where=[("run", "none")])


def test_a_run_folder_beside_its_parent_counts_once(run_folder):
    good, _ = run_folder("good", {"tokens": 100, "valid_loss": 4.2})
    run_folder("other", {"tokens": 100, "valid_loss": 4.0})
    runs = read_runs([good.parent, good], NEEDED)
    assert list(runs["run"]) == ["good", "other"]
    assert runs.warnings[0].startswith("repeated: 1 of 3 rows")


def test_a_config_that_no_longer_fits_is_named(run_folder):
    path, _ = run_folder("a", {"tokens": 100, "valid_loss": 4.2})
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("hidden_size", "hidden_sice", 1))
    with pytest.raises(UserError, match=r"runs/a/config\.yaml: model\.hidden_si"):
        read_runs([path], NEEDED)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a run folder"):
        read_runs([tmp_path], NEEDED)
