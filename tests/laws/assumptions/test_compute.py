"""FLOPs that 6 N D misses are told of, whether they are nominal or of the source's own count."""

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import fit
from hybridtron.laws.data.read import read_runs
from tests.laws import planted
from tests.laws.assumptions.told import DATA, read, told

NEEDED = ("n_params", "tokens", "flops", "loss")


def test_flops_that_differ_from_6nd_are_told_of():
    runs = read("isoflop", "marin_misfitting_isoflop.csv", where=[("dataset", "dclm")])
    (warning,) = told("isoflop", runs)
    assert warning.startswith("compute: column flops is 0.742 to 1.07 times 6 n_params tokens (20 of 85 rows differ by")
    assert "--flops-column 6ND --budget-tolerance 0.1" in warning
    assert "C means 6 N D in this law" in told("parametric", runs)[0]


@pytest.mark.parametrize("name", ["chinchilla_isoflop.csv", "learning_rate_sweep.csv"])
def test_flops_near_6nd_are_not(name):
    assert not any(text.startswith("compute") for text in told("isoflop", read("isoflop", name)))


def test_a_column_of_own_flops_beside_the_derived_ones():
    runs = planted.isoflop_runs(2, 0.001)
    names = ("n_params", "tokens", "loss")
    table = {name: runs[name] for name in names} | {"counted_flops": 1.3 * runs["flops"]}
    derived = read_runs([table], NEEDED)
    chosen = read_runs([table], NEEDED, columns={"flops": "counted_flops"})
    assert ["--flops-column counted_flops" in text for text in told("isoflop", derived)] == [True]
    assert "to 1.3 times 6 n_params tokens" in told("isoflop", chosen)[0]
    near = {**table, "counted_flops": 1.02 * runs["flops"], "flops_per_step": 1e6 + 0 * runs["flops"]}
    assert told("isoflop", read_runs([near], NEEDED)) == []


def test_6nd_takes_the_place_of_the_sources_flops():
    runs = planted.isoflop_runs(2, 0.001).with_column("flops", np.full(48, 7e19))
    found = read_runs([runs.columns], NEEDED, columns={"flops": "6ND"})
    np.testing.assert_allclose(found["flops"], 6 * found["n_params"] * found["tokens"])
    assert "flops = 6 n_params tokens" in found.notes


def test_a_tolerance_gathers_loose_budgets():
    """FLOPs up to 12 % about budgets of a factor 1.7: the gaps within budgets are no smaller than some between."""
    budgets = tuple(1e18 * 1.7 ** np.arange(9))
    runs = planted.isoflop_runs(2, 0.0005, budgets=budgets, sizes=7)
    rng = np.random.default_rng(5)
    loose = runs.with_column("flops", runs["flops"] * np.exp(rng.uniform(-0.12, 0.12, len(runs))))
    loose = loose.with_column("tokens", loose["flops"] / (6 * loose["n_params"]))
    found = fit("isoflop", loose, bootstrap=0, budget_tolerance=0.13)
    assert len(found.search["budgets"]) == 9
    assert found.parameters["a"] == pytest.approx(planted.isoflop_truth()["a"], abs=0.05)
    (warning,) = (text for text in found.warnings if text.startswith("budgets"))
    assert warning.startswith("budgets: 63 values of flops are gathered into 9, which their rows miss by up to 1")
    assert not any("seem to break" in sentence for sentence in found.verdict)


def test_points_of_a_figure_are_gathered():
    settings = {"where": "in_fit=1", "bootstrap": 0, "holdout": 0}
    loose, gathered = (
        fit("isoflop", DATA / "chinchilla_fig4.csv", **settings, budget_tolerance=share) for share in (0.02, 0.1)
    )
    assert any("--budget-tolerance 0.1" in text for text in loose.warnings)
    assert not any("--budget-tolerance" in text for text in gathered.warnings)
    assert len(gathered.search["budgets"]) < 0.5 * len(loose.search["budgets"])
    assert 0.45 < gathered.parameters["a"] < 0.55


@pytest.mark.parametrize("share", [0.01, 1.0, -1.0])
def test_a_tolerance_that_is_no_share_is_refused(share):
    with pytest.raises(UserError, match=r"budget_tolerance = .*: expected a share from 0\.02 to below 1"):
        fit("isoflop", planted.isoflop_runs(2, 0.001), budget_tolerance=share)
