"""Fit a law to runs: `hybridtron.laws.fit`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.assumptions.table import broken_assumptions, caveat
from hybridtron.laws.checks import check, setting_warnings, unit_warnings
from hybridtron.laws.data.read import read_runs
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.data.sources import source_name
from hybridtron.laws.families.registry import LAWS
from hybridtron.laws.keywords import divide_keywords
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.result import Fit

NOT_IDENTIFIED = "not identified: "  # begins a warning about what the data leave open


def fit(law: str, data: Any, settings: Settings | None = None, **keywords: Any) -> Fit:
    """Fit one law to runs.

    Args:
        law: a name in `LAWS`.
        data: a data frame (pandas, polars, pyarrow), a dict of arrays, the path of a CSV or parquet file or of run
            folders, several of these in a list, or `Runs`. Columns are known by their canonical names or by the usual
            synonyms (`hybridtron.laws.data.columns`).
        settings: the fields of `Settings` in one object; None takes the defaults. Keywords go before it.
        keywords: fields of `Settings`; options of the law by their names; `where` (column to value, pairs, or texts
            such as `in_fit=1`, `run!=a` and `loss<=4`) keeps or leaves out rows; `keep_best` keeps the lowest loss of
            each cell of equal parameters and tokens; `columns` (canonical name to column) or `loss_column="..."` and
            so on choose columns; `context` is the context length of run folders' state. `predict` is one point or a
            list, each a mapping or a text such as `N=7B,D=140B`.

    Raises:
        UserError: an unknown law, setting or option, a missing column, a value that the law cannot take (named by its
            line), or data from which the law cannot be fitted at all.
    """
    declared = find_law(law)
    settings, reading = divide_keywords(declared, settings or Settings(), keywords)
    if isinstance(data, Runs) and not reading:
        return _fit_runs(declared, data, settings)
    sources = data if isinstance(data, list | tuple) else [data]
    if not sources:
        raise UserError("data = []: expected a table, or the path of a file or run folder")
    runs = read_runs(
        sources, declared.columns, declared.optional_columns, group=settings.group, at_most=declared.at_most,
        **reading,
    )  # fmt: skip
    found = _fit_runs(declared, runs, settings)
    request: dict[str, Any] = {"sources": [source_name(source) for source in sources], "notes": list(runs.notes)}
    request |= {"where": [], "columns": {}, "context": None, "keep_best": False} | reading
    return replace(found, warnings=[*runs.warnings, *found.warnings], settings={**found.settings, "data": request})


def find_law(name: str) -> Law:
    """Return the law of this name; raises UserError with the nearest name."""
    if name not in LAWS:
        raise UserError(f"law {name!r}: expected {one_of(name, LAWS)}")
    return LAWS[name]


def _fit_runs(law: Law, runs: Runs, settings: Settings) -> Fit:
    """Check the runs, fit the law, and add the warnings that hold for every law."""
    check(law, runs, settings)
    assumed, broken = broken_assumptions(law, runs, settings)
    result = law.fit(replace(runs, broken=broken), settings)
    free = [text.removeprefix(NOT_IDENTIFIED) for text in result.warnings if text.startswith(NOT_IDENTIFIED)]
    first = [f"These data do not determine all of the law: {'; '.join(free)}."] if free else []
    return replace(
        result,
        warnings=unit_warnings(runs) + setting_warnings(law, settings) + assumed + result.warnings,
        verdict=caveat(broken) + first + result.verdict,
        law=law.name,
        summary=law.summary,
        settings={**asdict(settings), "options": dict(settings.options), **result.settings},
    )
