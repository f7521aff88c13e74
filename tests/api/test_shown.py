"""Results print as the command line prints them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.reporting.shown import show
from tests.conftest import ROOT, environment

LLAMA = str(ROOT / "configs/models/llama3_2.yaml")


@pytest.fixture
def printed(capsys):
    """Run a command and return what it prints."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out.rstrip("\n")

    return run


def test_descriptions_plans_and_grown_patterns_print_as_their_commands_do(tiny, printed):
    assert str(ht.describe(tiny)) == printed("describe", str(tiny))
    assert str(ht.plan(tiny, gpus=2)) == printed("plan", str(tiny), "--gpus", "2")
    scaled = ht.scale("2A+4M", LLAMA, "stack", overrides="size=1b")
    assert str(scaled) == printed("scale", "2A+4M", "--target", LLAMA, "size=1b", "--method", "stack")


def test_scores_print_their_table(tmp_path):
    score = ht.mad.score("mlp", tasks="compression", setting={"seq_len": 8}, preset=ht.mad.preset("smoke", max_steps=2))
    first, second, *_ = str(score).splitlines()
    assert first.split()[:2] == ["architecture", "mean"]
    assert second.split()[0] == "mlp"


def test_fits_print_their_parameters():
    table = str(ROOT / "tests/laws/data/chinchilla_fig4.csv")
    fit = ht.laws.fit("parametric", table, where={"in_fit": 1}, bootstrap=0, holdout=0)
    assert all(name in str(fit) for name in (*fit.parameters, *fit.verdict))


def test_a_fit_prints_the_same_however_it_was_made():
    """In a process of its own: which modules have been imported must not matter."""
    program = (
        "from hybridtron.laws import LAWS, Settings, read_runs; import sys\n"
        "runs = read_runs([sys.argv[1]], LAWS['parametric'].columns)\n"
        "print(LAWS['parametric'].fit(runs, Settings(bootstrap=0, holdout=0)))"
    )
    table = ROOT / "tests/laws/data/chinchilla_fig4.csv"
    done = subprocess.run([sys.executable, "-c", program, table], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "  alpha    0.3" in done.stdout
    assert "Fit(" not in done.stdout


def test_notebooks_show_the_same_text(tiny):
    account = ht.describe(tiny)
    assert account._repr_html_().startswith("<pre>")
    assert f"{account.total:,}" in account._repr_html_()


def test_what_registered_nothing_prints_its_repr(capsys):
    from hybridtron.reporting.table import terminal

    show([1], terminal())
    assert capsys.readouterr().out == "[1]\n"
