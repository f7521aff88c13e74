"""Scaling laws: runs in, a law with honest intervals out.

`fit(law, data, **settings)` fits the law called `law` (`LAWS` lists them) to a data frame, a dict of arrays, CSV or
parquet files or run folders, and returns a `Fit`: parameters, intervals, verdict, warnings and predictions, and
`Fit.report(folder)` writes them with plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError
from hybridtron.laws.assumptions.table import broken_assumptions, caveat
from hybridtron.laws.checks import check, setting_warnings, unit_warnings
from hybridtron.laws.data.columns import SYNONYMS
from hybridtron.laws.data.points import read_points
from hybridtron.laws.data.read import read_runs
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.data.sources import source_name
from hybridtron.laws.families.registry import LAWS
from hybridtron.laws.law import Fit, Law, Series, Settings
from hybridtron.laws.report import terminal  # noqa: F401  # registers how a fit is printed

__all__ = ["LAWS", "Fit", "Law", "Runs", "Series", "Settings", "find_law", "fit", "read_runs"]


NOT_IDENTIFIED = "not identified: "  # begins a warning about what the data leave open
_COLUMN = "_column"  # ends the name of a setting that chooses the column of a canonical name
_READING = ("where", "columns", "context", "keep_best")  # settings that only matter to how the data are read


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
            each cell of equal parameters and tokens; `columns` (canonical
            name to column) or `loss_column="..."` and so on choose columns; `context` is the context length of run
            folders' state. `predict` is one point or a list, each a mapping or a text such as `N=7B,D=140B`.

    Raises:
        UserError: an unknown law, setting or option, a missing column, a value that the law cannot take (named by its
            line), or data from which the law cannot be fitted at all.
    """
    declared = find_law(law)
    if keywords.get("keep_best"):
        _check_best(declared)
    settings, reading_settings = _settings(declared, settings or Settings(), keywords)
    if isinstance(data, Runs) and not reading_settings:
        return _fit_runs(declared, data, settings)
    sources = data if isinstance(data, list | tuple) else [data]
    if not sources:
        raise UserError("data = []: expected a table, or the path of a file or run folder")
    runs = read_runs(
        sources, declared.columns, declared.optional_columns, group=settings.group, at_most=declared.at_most,
        **reading_settings,
    )  # fmt: skip
    found = _fit_runs(declared, runs, settings)
    request: dict[str, Any] = {"sources": [source_name(source) for source in sources], "notes": list(runs.notes)}
    request |= {"where": [], "columns": {}, "context": None, "keep_best": False} | reading_settings
    return replace(found, warnings=[*runs.warnings, *found.warnings], settings={**found.settings, "data": request})


def find_law(name: str) -> Law:
    """Return the law of this name; raises UserError with the nearest name."""
    if name not in LAWS:
        raise UserError(f"law {name!r}: expected {one_of(name, LAWS)}")
    return LAWS[name]


def _check_best(law: Law) -> None:
    """Raise UserError for a law that is not about the best run of each size and length."""
    if {"learning_rate", "batch_tokens"} & {*law.columns}:
        raise UserError(f"keep_best: {law.name} reads the sweep of each budget; expected no choice of the best")
    if {"error", "score"} & {*law.columns}:
        raise UserError(
            f"keep_best: {law.name} is about {' and '.join(law.columns)} of every run, of the worse ones too; expected "
            "no choice of the best (--where keeps some rows)"
        )


def _settings(law: Law, settings: Settings, keywords: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Divide keywords into the settings of the fit and those of `read_runs`; raises UserError for an unknown one."""
    own = [field.name for field in fields(Settings)]
    chosen: dict[str, Any] = {}
    reading: dict[str, Any] = {}
    columns: dict[str, str] = dict(keywords.get("columns") or {})
    options = dict(settings.options) | dict(keywords.get("options") or {})
    for name, value in keywords.items():
        if name.removesuffix(_COLUMN) in SYNONYMS and name.endswith(_COLUMN):
            columns |= {name.removesuffix(_COLUMN): value} if value is not None else {}
        elif name in own:
            chosen[name] = value
        elif name in law.options or name in _READING:
            options |= {name: value} if name in law.options else {}
            reading |= {name: value} if name in _READING else {}
        else:
            known = [*own, *_READING, *law.options]
            close = nearest(name, [*known, *(canonical + _COLUMN for canonical in SYNONYMS)])
            raise UserError(
                f"{name}: no setting of law {law.name}; expected one of {', '.join(known)}, or NAME_column"
                + (f" (nearest: {close})" if close else "")
            )
    if columns:
        reading["columns"] = columns
    if "where" in reading:
        reading["where"] = _pairs(reading["where"])
    settings = replace(settings, **chosen | {"options": options})
    return replace(settings, predict=read_points(settings.predict)), {k: v for k, v in reading.items() if v}


def _pairs(where: Any) -> list[tuple[str, Any]]:
    """Return (column, value) pairs from a mapping, pairs, or texts such as `in_fit=1` or `run!=a`; raise UserError."""
    given = where.items() if isinstance(where, Mapping) else [where] if isinstance(where, str) else where or []
    pairs = [each.split("=", 1) if isinstance(each, str) else list(each) for each in given]
    for pair in pairs:
        lacks = "no comparison"
        if len(pair) == 2:
            column, value = (str(part) for part in pair)
            lacks = "no column" if not column.rstrip("!<>") else "no value" if column[-1] in "<>" and not value else ""
        if lacks:
            text = "=".join(map(str, pair))
            raise UserError(f"where = {text}: {lacks}; expected COL=VALUE, COL!=VALUE, COL<=VALUE or COL>=VALUE")
    return [(column, value) for column, value in pairs]


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
