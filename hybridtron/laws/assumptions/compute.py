"""FLOPs that 6 N D misses: nominal budgets, and FLOPs of the source's own count."""

from __future__ import annotations

import shlex

import numpy as np

from hybridtron.laws.assumptions.names import named, numbers, reads, sizes, words
from hybridtron.laws.data.columns import DERIVED
from hybridtron.laws.data.points import FLOPS_PER_PARAMETER_TOKEN
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import gather_budgets
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings

OFF = 1.1  # the factor by which FLOPs differ from 6 N D
FEWEST_SHARE = 0.1  # of the rows
_OF_SIZE = {"n_params", "tokens", "loss", "arch"}  # what a law reads that takes C for 6 N D
_NEAR = 3.0  # a column whose median lies within this factor of 6 N D holds training FLOPs, not those of a step


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of FLOPs that differ from 6 N D, and of a column of FLOPs beside the 6 N D that is used."""
    both = sizes(runs)
    if both is None or not ("flops" in reads(law) or {"n_params", "tokens"} <= reads(law) <= _OF_SIZE):
        return []
    six = FLOPS_PER_PARAMETER_TOKEN * both[0] * both[1]
    uses_flops, derived = "flops" in law.columns, DERIVED["flops"][0][2] in runs.notes
    for name in ["flops"] if "flops" in runs and not derived else _totals(runs):
        own = numbers(runs, name)
        if own is None or not 1 / _NEAR < np.median(own / six) < _NEAR or not _missed(own / six).any():
            continue
        ratio, rows = own / six, _missed(own / six)
        seen = (
            f"compute: column {name} is {ratio.min():.3g} to {ratio.max():.3g} times 6 n_params tokens "
            f"({rows.sum()} of {len(runs)} rows differ by more than {100 * (OFF - 1):.0f} %)"
        )
        if not uses_flops:
            return [f"{seen}; C means 6 N D in this law: predict at N and D, or fit isoflop, which reads FLOPs"]
        if derived:
            return [f"{seen}; budgets are read from 6 N D: take the column with --flops-column {shlex.quote(name)}"]
        return [
            f"{seen}; budgets are read from it: where it is nominal, take 6 N D with --flops-column 6ND "
            "--budget-tolerance 0.1, or another count with --flops-column COL"
        ]
    return []


def find_gathered(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell how far the FLOPs of one budget differ where option `budget_tolerance` gathers them."""
    if "budget_tolerance" not in settings.options or "budget_tolerance" not in law.options:
        return []
    gathered = gather_budgets(runs, settings)["flops"]
    moved = np.exp(np.abs(np.log(runs["flops"] / gathered))).max() - 1
    budgets = len(np.unique(gathered))
    return [
        f"budgets: {len(np.unique(runs['flops']))} values of flops are gathered into {budgets}, which their rows miss "
        f"by up to {100 * moved:.0f} %; their losses count as measured at equal compute"
    ] if moved > 1e-9 else []  # fmt: skip


def _totals(runs: Runs) -> list[str]:
    """Return the columns of FLOPs of whole runs."""
    return [name for name in named(runs, [{"flops"}, {"flop"}]) if "per" not in words(name)]


def _missed(ratio: Array) -> np.ndarray:
    """Return the rows that differ from 6 N D, [n]; none where they are few."""
    rows = np.abs(np.log(ratio)) > np.log(OFF)
    return rows if rows.mean() > FEWEST_SHARE else np.zeros(len(rows), dtype=bool)
