"""The keywords of `fit`: settings of the fit, options of the law, and how the data are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError
from hybridtron.laws.data.columns import SYNONYMS
from hybridtron.laws.data.points import read_points
from hybridtron.laws.law import Law, Settings

_COLUMN = "_column"  # ends the name of a setting that chooses the column of a canonical name
_READING = ("where", "columns", "context", "keep_best")  # settings that only matter to how the data are read


def divide_keywords(law: Law, settings: Settings, keywords: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Divide keywords of `fit` into the settings of the fit and those of `read_runs`.

    Raises UserError for an unknown keyword, and for `keep_best` of a law that is not about the best runs.
    """
    if keywords.get("keep_best"):
        _check_best(law)
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
        reading["where"] = filters(reading["where"])
    settings = replace(settings, **chosen | {"options": options})
    return replace(settings, predict=read_points(settings.predict)), {k: v for k, v in reading.items() if v}


def filters(where: Any) -> list[tuple[str, Any]]:
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


def _check_best(law: Law) -> None:
    """Raise UserError for a law that is not about the best run of each size and length."""
    if {"learning_rate", "batch_tokens"} & {*law.columns}:
        raise UserError(f"keep_best: {law.name} reads the sweep of each budget; expected no choice of the best")
    if {"error", "score"} & {*law.columns}:
        raise UserError(
            f"keep_best: {law.name} is about {' and '.join(law.columns)} of every run, of the worse ones too; expected "
            "no choice of the best (`where` keeps some rows)"
        )
