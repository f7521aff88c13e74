"""Checkpoints of one run given as runs: rows that share a name, or a size, and differ in their tokens alone."""

from __future__ import annotations

import shlex

import numpy as np

from hybridtron.laws.assumptions.names import reads, sizes
from hybridtron.laws.data.columns import RUN_NAMES, SYNONYMS
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings

FEWEST = 4  # tokens of a run, to see that they rise in equal steps
EVEN = 0.6  # share of the steps that are equal to their median within 2 %
FALLING = 0.9  # share of the steps at which the loss of one run falls

_ASK = "; are they checkpoints of one run each? Then --group {} resamples the rows of a run together"


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of rows that look like checkpoints of one run when nothing says that they belong together."""
    if settings.group is not None:
        return []
    if named := [name for name in RUN_NAMES if name in runs]:
        count = len(set(runs[named[0]]))
        if count == len(runs):
            return []
        return [f"grouping: {len(runs)} rows of {count} values of {named[0]!r}{_ASK.format(named[0])}"]
    if len(runs) < 2 * FEWEST:
        return []
    if not {"tokens", "flops", "M"} & reads(law) or sizes(runs) is None:
        return []
    for name in _candidates(runs):
        label = runs.labels(name)
        order = np.argsort(label, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
        if _are_runs(runs, groups, by_size=name == "n_params"):
            most, count = max(map(len, groups)), len(groups)
            return [
                f"grouping: {len(runs)} rows of {count} values of {name!r}, each of one n_params and up to {most} "
                f"rising tokens{_ASK.format(shlex.quote(name))}"
            ]
    return []


def _candidates(runs: Runs) -> list[str]:
    """Return the columns that may name runs: text, the size, and numbers that the law does not know by name."""
    repeated = [
        name for name, values in runs.columns.items() if name not in SYNONYMS and len(set(values)) < len(runs) / 2
    ]
    text = [name for name in repeated if runs[name].dtype == object]
    return [*text, "n_params", *(name for name in repeated if name not in text)]


def _are_runs(runs: Runs, groups: list[np.ndarray], by_size: bool) -> bool:
    """Return whether most rows lie in groups of one size whose tokens rise as those of checkpoints do.

    Sets of runs are also made at a few lengths for each size; those lengths double rather than rise in equal steps. A
    name that tells apart runs of one size and length says more: there the loss need only fall along each.
    """
    n_params, tokens, loss = runs["n_params"], runs["tokens"], runs["loss"]
    if any(len(set(n_params[rows])) > 1 or len(set(tokens[rows])) < len(rows) for rows in groups):
        return False
    long = [rows[np.argsort(tokens[rows])] for rows in groups if len(rows) >= FEWEST]
    if sum(map(len, long)) < 0.5 * len(runs):
        return False
    even = np.mean([_even(tokens[rows]) for rows in long])
    if even > 0.5:
        return True
    falls = np.mean(np.concatenate([np.diff(loss[rows]) < 0 for rows in long]))
    return not by_size and len(set(n_params)) < 0.7 * len(groups) and bool(falls >= FALLING)


def _even(tokens: Array) -> bool:
    steps = np.diff(tokens)
    return bool(np.mean(np.abs(steps / np.median(steps) - 1) < 0.02) >= EVEN)
