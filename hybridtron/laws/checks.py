"""Checks of runs and settings before anything is fitted."""

from __future__ import annotations

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.data.columns import missing_columns
from hybridtron.laws.data.ranges import check_ranges
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.law import Law, Settings
from hybridtron.reporting.numbers import plural

FEWEST_REPLICATES = 100  # below, an end of an interval is read off the outermost two replicates


def check(law: Law, runs: Runs, settings: Settings) -> None:
    """Raise UserError for unknown options, no rows, a missing column, or a value that the law cannot take."""
    for option in settings.options:
        if option not in law.options:
            raise UserError(f"law {law.name}: no option {option!r}; expected {one_of(option, law.options)}")
        _, _, *choices = law.options[option]
        if choices and settings.options[option] not in choices[0]:
            value = settings.options[option]
            raise UserError(f"{option} = {value}: expected {one_of(value, choices[0])}")
    for name, least in (("bootstrap", 0), ("seed", 0), ("jobs", 1), ("holdout", 0)):
        value = getattr(settings, name)
        if not (isinstance(value, int | np.integer) and value >= least) and (name, value) != ("holdout", None):
            raise UserError(f"{name} = {value!r}: expected a whole number of at least {least}")
    if len(runs) == 0:
        raise UserError(f"{runs.source}: no rows to fit; expected at least one (does a filter match nothing?)")
    if settings.group is not None:
        runs[settings.group]  # raises with the nearest names
    if missing := [name for name in law.columns if name not in runs]:
        raise missing_columns(missing, runs.columns, runs.source)
    optional = [name for name in law.optional_columns if name in runs and runs[name].dtype != object]
    check_ranges(runs, [*law.columns, *optional], law.at_most)
    if settings.delta is not None and not settings.delta > 0:
        raise UserError(f"delta = {settings.delta:g}: expected a number above zero, or inf for least squares")


def setting_warnings(law: Law, settings: Settings) -> list[str]:
    """Warn of settings that the law does not use, and of replicates too few for an interval."""
    given = {name: getattr(settings, name) for name in law.ignores if getattr(Settings(), name) is None}
    warnings = [f"ignored: {name} {value:g} means nothing to {law.name}" for name, value in given.items() if value]
    if "bootstrap" not in law.ignores and 0 < settings.bootstrap < FEWEST_REPLICATES:
        warnings.append(
            f"replicates: {settings.bootstrap} bootstrap replicates give rough intervals; take at least "
            f"{FEWEST_REPLICATES}"
        )
    return warnings


def unit_warnings(runs: Runs) -> list[str]:
    """Warn of values that do not look like the expected units, as questions."""
    numbers = {name: values for name, values in runs.columns.items() if values.dtype != object}
    none = np.zeros(len(runs))
    odd = (
        (numbers.get("loss", none) > 20, "a loss above 20",
         "is it a perplexity or a sum over tokens? Nats per token are expected"),
        (numbers.get("tokens", none + np.inf) < numbers.get("n_params", none), "fewer tokens than parameters",
         "are the tokens counted in millions or billions?"),
    )  # fmt: skip
    return [
        f"units: {plural(int(rows.sum()), 'row has', 'rows have')} {what} (first: {runs.place} "
        f"{runs.lines[np.argmax(rows)]}); {question}"
        for rows, what, question in odd
        if rows.any()
    ]
