"""Columns known by the words of their names, and the columns that a law reads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
SWEPT = ({"lr"}, {"learning", "rate"}, {"bs"}, {"gbs"}, {"batch"}, {"batchsize"})  # learning rate and batch size


def words(name: str) -> set[str]:
    """Return the words of a column's name in small letters: `peak_lr` and `peakLR` are peak and lr."""
    return {word.lower() for word in _WORD.findall(name)}


def named(runs: Runs, patterns: Iterable[set[str]]) -> list[str]:
    """Return the columns of numbers whose names hold all words of one of the patterns."""
    patterns = list(patterns)
    return [
        name
        for name, values in runs.columns.items()
        if values.dtype != object and any(pattern <= words(name) for pattern in patterns)
    ]


def reads(law: Law) -> set[str]:
    """Return the canonical columns that a law reads where they are there."""
    return {*law.columns, *law.optional_columns}


def numbers(runs: Runs, name: str) -> Array | None:
    """Return a column of finite numbers above zero, or None."""
    values = runs.columns.get(name)
    if values is None or values.dtype == object or not (np.isfinite(values) & (values > 0)).all():
        return None
    return values


def sizes(runs: Runs) -> tuple[Array, Array] | None:
    """Return parameters and tokens, each [n], or None where a column is missing."""
    n_params, tokens = numbers(runs, "n_params"), numbers(runs, "tokens")
    return None if n_params is None or tokens is None else (n_params, tokens)


def takes_one_loss_a_size(law: Law, runs: Runs) -> bool:
    """Return whether a law expects the best loss of each size and length, of a table that has both."""
    of_sizes = {"n_params", "tokens", "flops"} & reads(law)
    return bool(of_sizes) and not {"learning_rate", "batch_tokens"} & reads(law) and sizes(runs) is not None


def listed(values: Iterable[object], most: int = 4) -> str:
    """Return the first values in words: a, b, c, d, ..."""
    shown = list(dict.fromkeys(f"{value:g}" if isinstance(value, float) else str(value) for value in values))
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def quoted(name: str, order: str, value: object) -> str:
    """Return the filter as it is typed in a shell; every digit of a number, since `=` compares all of them."""
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    return f'--where "{name}{order}{text}"' if order != "=" else f"--where {shlex.quote(f'{name}={text}')}"
