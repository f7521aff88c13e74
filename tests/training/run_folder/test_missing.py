"""A path at which there is no run: what is there, and what may be meant."""

from __future__ import annotations

import pytest

from hybridtron.training.run_folder.missing import missing_run


@pytest.fixture
def runs(tmp_path):
    for name in ("base", "wide"):
        (tmp_path / name / "step_00000060").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
        (tmp_path / name / "step_00000060" / "train_state.json").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bsae", "no such folder; expected a run folder or checkpoint (nearest: {}/base)"),
        ("other", "no such folder; expected a run folder or checkpoint (there are: base, wide)"),
        ("nowhere/other", "no such folder; expected a run folder or checkpoint"),
        ("base/step_00000600", "no such folder; expected a run folder or checkpoint (nearest: {}/base/step_00000060)"),
        ("base/config.yaml", "is a file; expected a run folder or checkpoint (there are: step_00000060)"),
    ],
)
def test_what_is_there_and_what_may_be_meant(runs, path, expected):
    assert str(missing_run(runs / path)) == f"{runs / path}: {expected.format(runs)}"


def test_of_many_runs_some_are_named(runs):
    for number in range(9):
        (runs / f"x{number}").mkdir()
        (runs / f"x{number}" / "config.yaml").write_text("")
    assert str(missing_run(runs / "other")).endswith("(there are: base, wide, x0, x1, x2 and 6 more)")
