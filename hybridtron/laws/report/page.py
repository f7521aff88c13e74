"""A fit as one HTML page that needs nothing else: the verdict in words, then the plots, then every number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hybridtron.laws.families.law import Fit, Law
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.page import figure, page, section

PARAMETER_DIGITS = 5
LONG_LIST = 12  # longer lists of numbers are folded away
NONE, CLASS_TEXT = '<span class="none">–</span>', ' class="text"'
WIDE_ROW = 8  # a nested mapping of at most so many numbers lies in one row


def html_report(fit: Fit, law: Law, images: Mapping[str, bytes]) -> str:
    """The page. `images` are PNG by file name, as `plots.draw` returns them."""
    plain = fit.to_json()
    data = fit.settings.get("data", {})
    source = ", ".join(data.get("sources", [])) or "data"
    sections = [
        _verdict(fit),
        section("Plots", "".join(_figure(name, png) for name, png in images.items())),
        section("Parameters", _parameters(fit)),
        section("Predictions", _value(plain["predictions"]) if fit.predictions else ""),
        section("Sensitivity", _sensitivity(plain), "How far the answer moves under other reasonable choices."),
        section(
            "Extrapolation check",
            _value(plain["extrapolation"]) if fit.extrapolation else "<p>Not made: no runs were held out.</p>",
            "The largest runs are held out, the law is fitted to the rest, and its error on them is what counts.",
        ),
        section("Warnings", _warnings(fit.warnings)),
        section("How it was fitted", _value(plain["search"])),
        section("Settings", _value(plain["settings"]), "Everything that is needed to repeat this fit."),
    ]
    title = f"{law.name}: {source}"
    return page(title, _header(fit, law, source), sections, "the same numbers are in fit.json beside this page")


def _header(fit: Fit, law: Law, source: str) -> str:
    where = fit.settings.get("data", {}).get("where", [])
    filters = "".join(f" · {escape(str(column))} = {escape(str(value))}" for column, value in where)
    groups = f" in {fit.n_groups:,} runs" if fit.n_groups != fit.n_points else ""
    warned = f'<a class="chip warn" href="#warnings">{plural(len(fit.warnings), "warning")}</a>' if fit.warnings else ""
    refused = "" if fit.intervals else '<span class="chip warn">no intervals</span>'
    return (
        f'<header><p class="eyebrow">Scaling law</p><h1>{escape(law.name)}</h1>'
        f'<p class="formula">{_prose(law.summary)}</p><p class="source">{escape(source)}{filters} · '
        f"{plural(fit.n_points, 'point')}{groups} {warned}{refused}</p></header>"
    )


def _verdict(fit: Fit) -> str:
    if not fit.verdict:
        return ""
    rest = "".join(f"<li>{_prose(sentence)}</li>" for sentence in fit.verdict[1:])
    return (
        '<section class="verdict" id="verdict"><h2>What this data can and cannot support</h2>'
        f'<p class="lead">{_prose(fit.verdict[0])}</p>{f"<ul>{rest}</ul>" if rest else ""}</section>'
    )


def _figure(name: str, png: bytes) -> str:
    return figure(png, name.removesuffix(".png").partition("-")[2].replace("-", " "))


def _parameters(fit: Fit) -> str:
    rows = []
    for name, value in fit.parameters.items():
        interval = (fit.intervals or {}).get(name)
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{number(value, PARAMETER_DIGITS)}</td>"
            + (_interval_cells(value, interval) if interval else '<td colspan="2" class="none">not given</td>')
            + "</tr>"
        )
    return (
        '<table class="parameters"><thead><tr><th>parameter</th><th>estimate</th><th>95 % interval</th><th></th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note">Objective: {number(fit.objective, 8)}, summed over {fit.n_points:,} points.</p>'
    )


def _interval_cells(value: float, interval: Sequence[float]) -> str:
    """The interval in numbers, and as a bar on which the dot is the estimate and the middle of the track too."""
    low, high = interval
    text = f"<td>{number(low)} to {number(high)}</td>"
    reach = max(abs(high - value), abs(value - low))
    if not reach or not math.isfinite(reach):
        return text + "<td></td>"
    left, right = (50 + 45 * (end - value) / reach for end in (low, high))
    left, right = min(left, 50), max(right, 50)
    bar = f'<span class="range" style="left:{left:.1f}%;width:{right - left:.1f}%"></span><span class="dot"></span>'
    share = 100 * reach / abs(value) if value else math.inf
    percent = f"±{share:.2g} %" if share < 10 else f"±{share:.0f} %" if share < 1000 else ""
    return text + f'<td class="bar"><span class="track">{bar}</span><span class="percent">{percent}</span></td>'


def _sensitivity(plain: Mapping[str, Any]) -> str:
    """Every set of parameters found under another choice, below those of this fit; then whatever else was noted."""
    names = list(plain["parameters"])
    rows: list[Mapping[str, Any]] = [{"choice": "this fit", **plain["parameters"]}]
    rest = _take_parameters(plain["sensitivity"], names, "", rows)
    table = _table(rows) if len(rows) > 1 else ""
    return table + (_value(rest) if rest else "")


def _take_parameters(
    value: Mapping[str, Any], names: Sequence[str], path: str, rows: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is left of a nested mapping when each mapping that holds all parameters has become a row."""
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


def _warnings(warnings: Sequence[str]) -> str:
    """Each begins with its kind and a colon."""
    if not warnings:
        return "<p>None.</p>"
    items = []
    for warning in warnings:
        kind, colon, text = warning.partition(": ")
        chip = f'<span class="chip warn">{escape(kind)}</span> ' if colon else ""
        items.append(f"<li>{chip}{_prose(text if colon else kind)}</li>")
    return f'<ul class="warnings">{"".join(items)}</ul>'


def _value(value: Any) -> str:
    """Plain values: mappings by key, lists of mappings as a table, long lists of numbers folded away."""
    if isinstance(value, Mapping):
        return _mapping(value)
    if _is_table(value):
        return _table(value)
    if isinstance(value, list | tuple):
        if not value:
            return NONE
        if all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            text = " to ".join(map(number, value)) if len(value) == 2 else ", ".join(map(number, value))
            return (
                f"<details><summary>{len(value)} numbers</summary>{text}</details>" if len(value) > LONG_LIST else text
            )
        return "<br>".join(_value(item) for item in value)
    return _prose(value) if isinstance(value, str) else number(value)


def _mapping(value: Mapping[str, Any], nested: bool = False) -> str:
    """Two columns, and below them, at the top level, each entry that is a table of its own under its name."""
    if not value:
        return NONE
    if nested and len(value) <= WIDE_ROW and all(isinstance(item, int | float) for item in value.values()):
        return _table([value])
    rows = [{"": _words(key), **item} for key, item in value.items() if isinstance(item, Mapping)]
    if len(rows) == len(value) > 1 and _is_table(rows) and len({tuple(row) for row in rows}) == 1:
        return _table(rows)
    apart = {} if nested else {key: item for key, item in value.items() if _is_table(item) and len(item) > 1}
    cells = "".join(
        f"<tr><th>{_words(key)}</th><td>{_mapping(item, True) if isinstance(item, Mapping) else _value(item)}</td></tr>"
        for key, item in value.items()
        if key not in apart
    )
    tables = "".join(f"<h3>{_words(key)}</h3>{_value(item)}" for key, item in apart.items())
    return (f'<table class="keys"><tbody>{cells}</tbody></table>' if cells else "") + tables


def _is_table(value: Any) -> bool:
    """A list of mappings that hold no further mappings."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(row, Mapping) and row for row in value)
        and not any(isinstance(cell, Mapping) or _is_table(cell) for row in value for cell in row.values())
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One column per name; an interval stands below its estimate."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name.removesuffix("_interval") == name or name[:-9] not in names]
    head = "".join(f"<th>{_words(name)}</th>" for name in names)
    lines = ("".join(_cell(row, name) for name in names) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, interval = row.get(name, ""), row.get(f"{name}_interval")
    below = f"<small>{_value(interval)}</small>" if interval else ""
    return f"<td{CLASS_TEXT if isinstance(value, str) and len(value) > 30 else ''}>{_value(value)}{below}</td>"


def _prose(text: str) -> str:
    """Escaped text with exponents raised: N^0.3, C^(a+b)."""
    return re.sub(r"\^(-?\d+(?:\.\d+)?|-?\w+|\([^()]*\))", r"<sup>\1</sup>", escape(text))


def _words(key: object) -> str:
    """A key in words; a symbol such as k_N stays as it is."""
    text = str(key)
    return escape(text if any(len(part) == 1 for part in text.split("_")) else text.replace("_", " "))


def number(value: Any, digits: int = 4) -> str:
    """A number as HTML: grouped digits, or a power of ten where it is very large or small; – for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**7:
        return f"{value:,}"
    if not isinstance(value, int | float):
        return escape(str(value))
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g} × 10<sup>{int(exponent)}</sup>".replace("-", "−")
    return f"{float(f'{value:.{digits}g}'):,.10g}".replace("-", "−")
