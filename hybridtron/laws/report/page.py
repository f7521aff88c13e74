"""A fit as one self-contained HTML page: the verdict, the plots, then every number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hybridtron.reporting.numbers import html_number
from hybridtron.reporting.page import blocks, join, render
from hybridtron.reporting.table import Column, Table
from hybridtron.reporting.values import html_values, records_table

if TYPE_CHECKING:
    from hybridtron.laws.families.law import Fit

PARAMETER_DIGITS = 5


def html_report(fit: Fit, images: Mapping[str, bytes]) -> str:
    """Return the page. `images` are PNG by file name, as `plots.draw` returns them."""
    plain = fit.to_json()
    data = fit.settings.get("data", {})
    names = list(fit.parameters)
    rows: list[Mapping[str, Any]] = [{"choice": "this fit", **plain["parameters"]}]
    rest = _take_parameters(plain["sensitivity"], names, "", rows)
    choices = Table([Column(name, [row[name] for row in rows], html_number) for name in rows[0]])
    return render(
        __package__, "fit.html.j2", fit=fit, plain=plain, images=images, parameters=_parameters(fit), sensitivity=rest,
        choices=choices if len(rows) > 1 else None, source=", ".join(data.get("sources", [])) or "data",
        where=data.get("where", []), html_values=html_values, records_table=records_table,
    )  # fmt: skip


def _parameters(fit: Fit) -> Table:
    rows = []
    for name, value in fit.parameters.items():
        ends = (fit.intervals or {}).get(name)
        shown = (join(map(html_number, ends), " to "), _interval_bar(value, ends)) if ends else ("not given", "")
        rows.append((name, html_number(value, PARAMETER_DIGITS), *shown))
    return Table.from_rows(("parameter", "estimate", "95 % interval", ""), rows)


def _interval_bar(value: float, ends: Sequence[float]) -> Markup:
    """Render the interval as a bar with the estimate in its middle, and its larger half in percent."""
    reach = max(abs(end - value) for end in ends)
    if not reach or not math.isfinite(reach):
        return Markup()
    left, right = (50 + 45 * (end - value) / reach for end in ends)
    left, right = min(left, 50), max(right, 50)
    share = 100 * reach / abs(value) if value else math.inf
    percent = f"±{share:.2g} %" if share < 10 else f"±{share:.0f} %" if share < 1000 else ""
    return blocks.interval_bar(f"{left:.1f}", f"{right - left:.1f}", percent)


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
