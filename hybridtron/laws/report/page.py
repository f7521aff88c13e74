"""A fit as one self-contained HTML page: the verdict, the plots, then every number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hybridtron.laws.report.plots import describe
from hybridtron.reporting.numbers import html_number
from hybridtron.reporting.page import render
from hybridtron.reporting.table import Column, Table
from hybridtron.reporting.values import html_values, records_table

if TYPE_CHECKING:
    from hybridtron.laws.result import Fit


def html_report(fit: Fit, images: Mapping[str, bytes]) -> str:
    """Return the page. `images` are PNG by file name, as `plots.draw` returns them."""
    plain = fit.to_json()
    data = fit.settings.get("data", {})
    names = list(fit.parameters)
    rows: list[Mapping[str, Any]] = [{"choice": "this fit", **plain["parameters"]}]
    rest = _take_parameters(plain["sensitivity"], names, "", rows)
    choices = Table([Column(name, [row[name] for row in rows], html_number) for name in rows[0]])
    described = zip(images.values(), describe(fit.curves), strict=False)
    return render(
        __package__, "fit.html.j2", fit=fit, plain=plain, images=described, sensitivity=rest, infinity=math.inf,
        choices=choices if len(rows) > 1 else None, source=", ".join(data.get("sources", [])) or "data",
        where=data.get("where", []), html_values=html_values, records_table=records_table,
    )  # fmt: skip


def _take_parameters(
    value: Mapping[str, Any], names: Sequence[str], path: str, rows: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """Move each nested mapping that holds all parameters to `rows`; return what is left."""
    rest: dict[str, Any] = {}
    for key, item in value.items():
        words = path if key == "parameters" else f"{path} {key}".strip()
        if not isinstance(item, Mapping):
            rest[key] = item
        elif all(name in item for name in names):
            rows.append({"choice": words.replace("_", " "), **{name: item[name] for name in names}})
            more = {name: content for name, content in item.items() if name not in names}
            rest |= {key: more} if more else {}
        elif more := _take_parameters(item, names, words, rows):
            rest[key] = more
    return rest
