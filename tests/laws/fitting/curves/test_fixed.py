"""Parameters held at a value: the others are fitted, and values that the data do not allow are refused or told of."""

import numpy as np
import pytest

from hybridtron.cli.main import main
from hybridtron.errors import UserError
from hybridtron.laws import fit
from tests.laws.assumptions.told import DATA
from tests.laws.planted_formulas import LAWS as PLANTED

QUICK = {"bootstrap": 0, "holdout": 0}
SPARSE = PLANTED["sparse"]


def told(fix, noise=0.003) -> list[str]:
    found = fit("sparse", SPARSE.runs(6, noise), fix=fix, **QUICK)
    return [warning for warning in found.warnings if warning.startswith("held: ")]


def test_parameters_can_be_held():
    found = fit("sparse", SPARSE.runs(6, 0.0), fix="alpha=0.3, E=1.7", predict=SPARSE.point, **QUICK)
    assert set(found.parameters) == set(SPARSE.truth) - {"alpha", "E"}
    assert found.parameters == pytest.approx({name: SPARSE.truth[name] for name in found.parameters}, rel=1e-3)


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        ("alfa=0.3", r"fix = alfa=0.3: sparse has no parameter 'alfa'; expected .*alpha"),
        ("alpha", "fix = alpha: expected NAME=NUMBER,NAME=NUMBER"),
        ("alpha=inf", "fix = alpha=inf: alpha is inf; expected a finite number"),
        ("a=1,b=1,g=1,alpha=1,B=1,beta=1,E=1", "every parameter of sparse is held; expected at least one to fit"),
        ("E=-1", "fix = E=-1: E is -1; expected a number that is not below zero"),
        ("alpha=-0.1", "alpha is -0.1; expected a number that is not below zero"),
        ("E=50", r"fix = E=50: sparse then stays above 50 nats; the losses are [\d.]+ to [\d.]+; expected values"),
    ],
)
def test_a_fix_that_cannot_be_is_refused_in_a_line(fix, message):
    with pytest.raises(UserError, match=message) as raised:
        fit("sparse", SPARSE.runs(6, 0.0, n=40), fix=fix, **QUICK)
    assert "\n" not in str(raised.value)


def test_the_command_names_its_option_and_writes_nothing(tmp_path, capsys):
    arguments = ["outer-exponent", str(DATA / "chinchilla_fig4.csv"), "--fix", "E=50", "--out", str(tmp_path / "fit")]
    assert main(["laws", "fit", *arguments]) == 2
    assert "--fix = E=50: outer-exponent then stays above 50 nats; the losses are 2.0" in capsys.readouterr().err
    assert not (tmp_path / "fit").exists()


def test_a_law_without_fixed_parameters_names_those_that_have_them(tmp_path, capsys):
    arguments = ["isoflop", str(DATA / "chinchilla_fig4.csv"), "--fix", "a=0.5", "--out", str(tmp_path / "fit")]
    assert main(["laws", "fit", *arguments]) == 2
    assert "--fix: isoflop has no such option; expected it with one of depth-width, " in capsys.readouterr().err


def test_a_value_above_some_losses_is_told_of_with_their_count():
    loss = SPARSE.runs(6, 0.003)["loss"]
    warning, _ = told(f"E={np.quantile(loss, 0.2):.3g}")
    count = int(warning.partition("beyond which lie ")[2].split()[0])
    assert 20 <= count <= 31
    assert warning.endswith(f"of 150 rows; the losses are {loss.min():.4g} to {loss.max():.4g}")


@pytest.mark.parametrize(("fix", "is_told"), [("alpha=0.9", True), ("E=1.1", True), ("alpha=0.3,beta=0.36", False)])
def test_values_that_fit_much_worse_are_told_of(fix, is_told):
    found = told(fix)
    assert len(found) == is_told
    assert all("% with every parameter fitted; are the held values those of this data set?" in one for one in found)


def test_the_truth_held_without_noise_is_told_of_nothing():
    assert told({"E": SPARSE.truth["E"]}, noise=0.0) == []
