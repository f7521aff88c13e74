"""The declaration of a law, and the settings of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.result import Fit


@dataclass(frozen=True)
class Settings:
    """Choices of the user about a fit.

    Attributes:
        delta: Huber threshold on the residual; None takes the law's own (`math.inf` means least squares).
        bootstrap: replicates for the intervals; 0 asks for none.
        seed: of every random draw; the same seed gives the same answer whatever `jobs` is.
        group: column that names the run a row belongs to; its rows are resampled together.
        holdout: runs (budgets, for `isoflop`) of the largest compute kept out of the extrapolation check;
            None takes about a tenth, 0 skips the check.
        predict: points to predict, e.g. `{"N": 6.9e9, "D": 1.38e11}` or `{"C": 1e21}`.
        jobs: threads for the bootstrap.
        options: of one law, by the names in `Law.options`.
    """

    delta: float | None = None
    bootstrap: int = 1000
    seed: int = 0
    group: str | None = None
    holdout: int | None = None
    predict: list[dict[str, float]] = field(default_factory=list)
    jobs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Law:
    """The declaration of a law.

    Attributes:
        name: as typed on the command line.
        summary: the formula and what it is for, in one line.
        columns: canonical columns that the runs must have.
        parameters: public names of what is fitted.
        fit: the fit itself.
        optional_columns: canonical columns that are used when they are there.
        at_most: column -> the column above which its values cannot lie.
        options: name of each option of this law, with its default, its meaning and, where few are possible, its values.
        ignores: settings that mean nothing to this law; a warning says so when one is given.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    fit: Callable[[Runs, Settings], Fit]
    optional_columns: tuple[str, ...] = ()
    at_most: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
