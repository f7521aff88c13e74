"""A fit as one self-contained HTML page: the verdict, the plots, then every number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hybridtron.reporting.numbers import html_number, plural
from hybridtron.reporting.page import blocks, figure, join, page, raise_exponents, section, verdict
from hybridtron.reporting.table import Column, Table
from hybridtron.reporting.values import html_values, records_table

if TYPE_CHECKING:
    from hybridtron.laws.families.law import Fit

PARAMETER_DIGITS = 5


def html_report(fit: Fit, images: Mapping[str, bytes]) -> str:
    """Return the page. `images` are PNG by file name, as `plots.draw` returns them."""
    plain = fit.to_json()
    source = ", ".join(fit.settings.get("data", {}).get("sources", [])) or "data"
    plots = [figure(png, name.removesuffix(".png").partition("-")[2].replace("-", " ")) for name, png in images.items()]
    not_made = blocks.paragraph("Not made: no runs were held out.")
    sections = [
        _verdict(fit),
        section("Plots", *plots),
        section("Parameters", _parameters(fit)),
        section("Predictions", records_table(plain["predictions"]) if fit.predictions else Markup()),
        section("Sensitivity", _sensitivity(plain), note="The answer under other reasonable choices."),
        section(
            "Extrapolation check",
            html_values(plain["extrapolation"]) if fit.extrapolation else not_made,
            note="The largest runs are held out, and the law that is fitted to the rest predicts them.",
        ),
        section("Warnings", _warnings(fit.warnings)),
        section("How it was fitted", html_values(plain["search"])),
        section("Settings", html_values(plain["settings"]), note="Everything that is needed to repeat this fit."),
    ]
    header = _header(fit, source)
    return page(f"{fit.law}: {source}", header, sections, "the same numbers are in fit.json beside this page")


def _header(fit: Fit, source: str) -> Markup:
    where = fit.settings.get("data", {}).get("where", [])
    groups = f" in {fit.n_groups:,} runs" if fit.n_groups != fit.n_points else ""
    facts = [source, *(f"{column} = {value}" for column, value in where), plural(fit.n_points, "point") + groups]
    chips = [blocks.chip(plural(len(fit.warnings), "warning"), "#warnings")] if fit.warnings else []
    chips += [] if fit.intervals else [blocks.chip("no intervals")]
    return blocks.header("Scaling law", fit.law, raise_exponents(fit.summary), " · ".join(facts), chips)


def _verdict(fit: Fit) -> Markup:
    lead, *rest = map(raise_exponents, fit.verdict or [""])
    return verdict([lead], rest, "What this data can and cannot support") if lead else Markup()


def _parameters(fit: Fit) -> Markup:
    rows = []
    for name, value in fit.parameters.items():
        ends = (fit.intervals or {}).get(name)
        shown = (join(map(html_number, ends), " to "), _interval_bar(value, ends)) if ends else ("not given", "")
        rows.append((name, html_number(value, PARAMETER_DIGITS), *shown))
    table = Table.from_rows(("parameter", "estimate", "95 % interval", ""), rows).to_html()
    objective = Markup("Objective: {}, summed over {:,} points.").format(html_number(fit.objective, 8), fit.n_points)
    return table + blocks.paragraph(objective, "note")


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


def _sensitivity(plain: Mapping[str, Any]) -> Markup:
    """Render the parameters under each other choice below those of this fit, then whatever else was recorded."""
    names = list(plain["parameters"])
    rows: list[Mapping[str, Any]] = [{"choice": "this fit", **plain["parameters"]}]
    rest = _take_parameters(plain["sensitivity"], names, "", rows)
    table = Table([Column(name, [row[name] for row in rows], html_number) for name in rows[0]]).to_html()
    return join([table if len(rows) > 1 else "", html_values(rest)])


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


def _warnings(warnings: Sequence[str]) -> Markup:
    """Render warnings, each of which begins with its kind and a colon."""
    items = []
    for warning in warnings:
        kind, colon, text = warning.partition(": ")
        chip = blocks.chip(kind) + " " if colon else ""
        items.append(chip + raise_exponents(text if colon else kind))
    return blocks.listing(items, "warnings") or blocks.paragraph("None.")
