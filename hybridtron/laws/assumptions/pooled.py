"""Several kinds of runs in one table: architectures, contexts, data sets, recipes that one law does not describe.

The log of the loss is fitted by a polynomial in the logarithms of what the law reads (a law is smooth there), and again
with an offset and slopes for each kind: an F test, and how far the kinds lie apart.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.special import fdtrc

from hybridtron.laws.assumptions.names import SWEPT, listed, numbers, quoted, reads, words
from hybridtron.laws.data.columns import RUN_NAMES, SYNONYMS
from hybridtron.laws.data.outliers import outlier_flags
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import robust_deviation
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings

COORDINATES = (
    "n_params", "tokens", "flops", "M", "width", "depth", "learning_rate", "batch_tokens", "unique_tokens", "experts",
    "active_params", "granularity", "ratio", "weight_bits", "activation_bits", "kv_bits",
)  # fmt: skip
CONTEXTS = ({"context"}, {"ctx"}, {"seq", "len"}, {"seqlen"}, {"sequence", "length"}, {"block", "size"})
OWN_MINIMA: Mapping[str, tuple[str, ...]] = {"state-optimal": ("arch",)}  # laws that part the rows by columns
MOST = 12  # values of a column of kinds
_FEWEST_ROWS = 5  # of a kind
_NAMED = (1e-4, 0.9)  # largest p, and share of the scatter that is left, of architectures and contexts
_OTHER = (1e-6, 0.6)  # of any other column, many of which are tried
_NOT_KINDS = (*SWEPT, {"outlier"}, {"seed"}, {"step"}, {"steps"}, {"unique"}, {"epochs"}, {"reason"}, {"loss"},
              *({word} for word in ("params", "parameters", "parameter", "flops")))  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """A smooth surface of log losses; rows far off it are left out."""

    rows: np.ndarray  # [m] of the runs
    target: Array  # log loss, [m]
    design: Array  # [m, terms]
    directions: Array  # log coordinates without those that follow from others, [m, k]


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of each column whose values part the losses at equal size."""
    surface, warnings = _surface(law, runs, settings), []
    for name in explaining(law, runs, settings):
        kinds = list(dict.fromkeys(runs[name].tolist()))
        what = "architectures" if name == "arch" else f"values of {name}"
        share = None if surface is None else _apart(runs, surface, name)
        apart = "" if share is None else f", and at equal size their losses lie {share:.2g} % apart"
        advice = f"fit one with {quoted(name, '=', kinds[0])}"
        if "architectures" in law.options:
            column = "" if name == "arch" else f"--arch-column {shlex.quote(name)} "
            advice += f", or each with its own E, A and B with {column}--architectures offset"
        warnings.append(f"pooled: rows of {len(kinds)} {what} ({listed(kinds)}) share one law{apart}; {advice}")
    return warnings


def explaining(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Return the columns whose values part the losses, the strongest first; each adds to those before it."""
    if "loss" not in law.columns or not set(COORDINATES) & reads(law):
        return []
    known = parted(law, runs, settings)
    candidates = [
        name
        for name in runs.columns
        if name not in {*known, *law.columns} and _is_kind(runs, settings, name) and not _is_read(law, runs, name)
    ]
    surface = _surface(law, runs, settings)
    if surface is None:
        return ["arch"] if "arch" in candidates else []
    for name in known:
        surface = _with(surface, runs, name)
    found: list[str] = []
    while candidates:
        tested = {name: _test(surface, runs, name) for name in candidates}
        passed = [n for n, (p, left) in tested.items() if p <= _limits(n)[0] and left <= _limits(n)[1]]
        if not passed:
            break
        best = min(passed, key=lambda name: (not _is_named(name), tested[name][1]))
        found.append(best)
        candidates.remove(best)
        surface = _with(surface, runs, best)
    return found


def parted(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Return the columns whose values the law describes one by one."""
    own = ("arch",) if settings.options.get("architectures") == "offset" else OWN_MINIMA.get(law.name, ())
    return [name for name in own if name in runs]


def _limits(name: str) -> tuple[float, float]:
    return _NAMED if _is_named(name) else _OTHER


def _is_named(name: str) -> bool:
    return name == "arch" or any(pattern <= words(name) for pattern in CONTEXTS)


def _is_kind(runs: Runs, settings: Settings, name: str) -> bool:
    """Return whether a column may name kinds of runs: a few values of several rows each, that no size explains."""
    values = runs[name]
    if name != "arch" and (name in SYNONYMS or name in RUN_NAMES or name == settings.group):
        return False
    if any(pattern <= words(name) for pattern in _NOT_KINDS):
        return False
    _, label, count = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    few = count < _FEWEST_ROWS
    if not 2 <= len(count) <= MOST or np.sum(~few) < 2 or count[few].sum() > 0.2 * len(runs):
        return False
    if name != "arch" and "arch" in runs and _same_parts(label, runs.labels("arch")):
        return False
    if _is_named(name):
        return True
    flags = outlier_flags(runs, settings.options.get("outliers"))
    if flags is not None and all(len(set(flags[1][label == kind])) == 1 for kind in range(len(count))):
        return False
    n_params = numbers(runs, "n_params")
    return n_params is None or not _follows(label, n_params)


def _is_read(law: Law, runs: Runs, name: str) -> bool:
    """Return whether a column is one that the law reads, under the source's name."""
    return any(one != name and one in runs and np.array_equal(runs[one], runs[name]) for one in reads(law))


def _same_parts(label: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two columns, each as the numbers of its values [n], part the rows alike."""
    pairs = len(np.unique(np.stack([label, other]), axis=1).T)
    return bool(pairs == label.max() + 1 == other.max() + 1)


def _follows(label: np.ndarray, n_params: Array) -> bool:
    """Return whether a column only names sizes: runs of one size share its value, and sizes repeat; or it bins them."""
    pairs = np.unique(np.stack([label, np.unique(n_params, return_inverse=True)[1]]), axis=1).shape[1]
    distinct = len(np.unique(n_params))
    if pairs == distinct and distinct < len(label) / 2:
        return True
    return bool(np.count_nonzero(np.diff(label[np.argsort(n_params, kind="stable")])) == label.max())


def _surface(law: Law, runs: Runs, settings: Settings) -> Surface | None:
    """Fit the smooth surface of log losses; None where the rows are too few for one."""
    columns = [values for name in COORDINATES if name in reads(law) and (values := numbers(runs, name)) is not None]
    loss = numbers(runs, "loss")
    if not columns or loss is None:
        return None
    logs = np.log(np.stack(columns, axis=1))  # [n, columns]
    logs = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12)
    u, size, _ = np.linalg.svd(logs, full_matrices=False)
    directions = u[:, size > 1e-3 * size[0]] * np.sqrt(len(u))  # [n, k]
    k, rows = directions.shape[1], _last_of_runs(runs, settings)
    terms = [combination for degree in (0, 1, 2, 3) for combination in combinations_with_replacement(range(k), degree)]
    terms = [term for term in terms if len(term) < 3 or len(terms) < len(rows) / 5]
    design = np.stack([np.prod(directions[:, list(term)], axis=1) for term in terms], axis=1)
    if len(rows) < 2 * len(terms):
        return None
    target = np.log(loss)
    for _ in range(2):
        residual = _residual(design[rows], target[rows])
        near = np.abs(residual - np.median(residual)) <= 6 * max(robust_deviation(residual), 1e-12)
        rows = rows[near] if near.sum() >= 2 * len(terms) else rows
    return Surface(rows, target[rows], design[rows], directions[rows])


def _last_of_runs(runs: Runs, settings: Settings) -> np.ndarray:
    """Return the row of most tokens of each run, since checkpoints share its noise; all rows where none are known."""
    name = settings.group or next((name for name in RUN_NAMES if name in runs), None)
    if name is None or "tokens" not in runs or runs["tokens"].dtype == object:
        return np.arange(len(runs))
    label = runs.labels(name)
    order = np.lexsort((-runs["tokens"], label))
    return np.sort(order[np.unique(label[order], return_index=True)[1]])


def _residual(design: Array, target: Array) -> Array:
    return np.asarray(target - design @ np.linalg.lstsq(design, target, rcond=None)[0])


def _dummies(runs: Runs, rows: np.ndarray, name: str) -> Array:
    """Return one column of zeros and ones for each value of `name` but the first, [m, kinds - 1]."""
    label = np.unique(runs[name].astype(str)[rows], return_inverse=True)[1]
    return np.asarray(label[:, None] == np.arange(1, label.max() + 1), dtype=float)


def _with(surface: Surface, runs: Runs, name: str) -> Surface:
    """Add an offset and slopes for each value of a column; offsets alone where rows are few."""
    offset = _dummies(runs, surface.rows, name)
    slopes = (offset[:, :, None] * surface.directions[:, None]).reshape(len(offset), -1)
    terms = surface.design.shape[1] + offset.shape[1] + slopes.shape[1]
    parts = [surface.design, offset, *([slopes] if len(offset) > 2 * terms else [])]
    return Surface(surface.rows, surface.target, np.concatenate(parts, axis=1), surface.directions)


def _test(surface: Surface, runs: Runs, name: str) -> tuple[float, float]:
    """Return the p of the F test of a column's offsets and slopes, and the share of the scatter that is left."""
    larger = _with(surface, runs, name)
    n = len(surface.target)
    ranks = [int(np.linalg.matrix_rank(design)) for design in (surface.design, larger.design)]
    added, freedom = ranks[1] - ranks[0], n - ranks[1]
    if added <= 0 or freedom < 3:
        return 1.0, 1.0
    before, after = (float((_residual(one.design, one.target) ** 2).sum()) for one in (surface, larger))
    after = max(after, 1e-24 * n)
    return float(fdtrc(added, freedom, max(before - after, 0) / added / (after / freedom))), after / max(before, 1e-300)


def _apart(runs: Runs, surface: Surface, name: str) -> float:
    """Return how far the losses of the values of a column lie apart at equal size, in per cent."""
    offset = _dummies(runs, surface.rows, name)
    design = np.concatenate([surface.design, offset], axis=1)
    found = np.linalg.lstsq(design, surface.target, rcond=None)[0][-offset.shape[1] :]
    return 100 * float(np.expm1(np.ptp([0.0, *found])))
