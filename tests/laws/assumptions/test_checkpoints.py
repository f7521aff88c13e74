"""Checkpoints of one run are asked about under any name of the column, or none."""

import numpy as np
import pytest

from hybridtron.laws.data.runs import Runs
from tests.laws import planted
from tests.laws.assumptions.told import read, told


def renamed(runs: Runs, **names: str | None) -> Runs:
    columns = {names.get(name, name): values for name, values in runs.columns.items()}
    return Runs.of(**{name: values for name, values in columns.items() if name is not None})


def test_repeated_run_names_without_a_group_are_asked_about():
    (warning,) = told("parametric", read("parametric", "gemstones.csv"))
    assert warning.startswith("grouping: 220 rows of 22 values of 'run'; are they checkpoints")
    assert "--group run" in warning
    assert told("parametric", read("parametric", "gemstones.csv", group="run"), group="run") == []


@pytest.mark.parametrize(("name", "group"), [("shape", "shape"), (None, "n_params")])
def test_any_name_of_the_column_or_none(name, group):
    runs = renamed(read("parametric", "gemstones.csv"), run=name)
    (warning,) = told("parametric", runs)
    assert f"22 values of '{group}', each of one n_params and up to 10 rising tokens" in warning
    assert f"--group {group}" in warning
    assert told("parametric", runs, group=group) == []


def test_names_tell_apart_runs_of_one_size_at_lengths_of_any_steps():
    """Two runs of each size, whose checkpoints double."""
    rng = np.random.default_rng(1)
    sizes, tokens = np.repeat(np.geomspace(1e8, 3e9, 6), 10), np.tile(1e9 * 2.0 ** np.arange(5), 12)
    loss = planted.parametric_loss(sizes, tokens, **planted.PARAMETRIC) * np.exp(0.003 * rng.standard_normal(60))
    names = np.repeat([f"trial {i}" for i in range(12)], 5)
    runs = Runs.of(n_params=sizes, tokens=tokens, loss=loss, label=list(names))
    assert ["--group label" in text for text in told("parametric", runs)] == [True]


@pytest.mark.parametrize(
    ("law", "name", "columns"),
    [
        ("parametric", "gadre_overtraining.csv", {"loss": "loss_c4_val"}),
        ("parametric", "chinchilla_fig4.csv", {}),
        ("isoflop", "chinchilla_isoflop.csv", {}),
        ("state-optimal", "gemstones_state_optimal.csv", {}),
    ],
)
def test_runs_of_one_size_and_several_lengths_are_no_checkpoints(law, name, columns):
    runs = renamed(read(law, name, columns=columns), run=None)
    assert not any(text.startswith("grouping") for text in told(law, runs))
