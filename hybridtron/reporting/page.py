"""One self-contained HTML page: a header, sections and a footer, from the templates beside this file.

Text is escaped. Only `Markup`, which the macros of `blocks` and `Table.to_html` return, is taken as HTML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import hybridtron
from hybridtron.reporting.pictures import PIXELS_PER_INCH

_TEMPLATES = Environment(
    loader=PackageLoader("hybridtron.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
blocks: Any = _TEMPLATES.get_template("blocks.html.j2").module  # macros: header, paragraph, listing, chip, code, ...


def page(title: str, header: Markup, sections: Iterable[Markup], beside: str) -> str:
    """Render the page. Leave out empty sections; `beside` names in the footer the files beside the page."""
    return _TEMPLATES.get_template("page.html.j2").render(
        title=title, header=header, sections=sections, beside=beside, version=hybridtron.__version__
    )


def section(title: str, *body: Markup, note: str = "") -> Markup:
    """Render blocks under a heading, whose words are the anchor; return nothing when all blocks are empty."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return blocks.section(title, anchor, note, join(body)) if any(body) else Markup()


def verdict(leads: Sequence[str], sentences: Sequence[str] = (), title: str = "", *body: Markup) -> Markup:
    """Render the first section: the result in one or more sentences, a list of further ones, then other blocks."""
    return blocks.verdict(leads, sentences, title, join(body))


def figure(png: bytes, alt: str) -> Markup:
    """Render a picture inside the page; `alt` describes it to those who do not see it."""
    inches = int.from_bytes(png[16:20]) / PIXELS_PER_INCH  # the width in a PNG's header
    return blocks.figure(base64.b64encode(png).decode(), alt, f"{inches:g}")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Join blocks, or texts, which are escaped."""
    return Markup(separator).join(parts)


def raise_exponents(text: str) -> Markup:
    """Escape text and raise its exponents: N^0.3, C^(a+b)."""
    return Markup(re.sub(r"\^(-?\d+(?:\.\d+)?|-?\w+|\([^()]*\))", r"<sup>\1</sup>", str(Markup.escape(text))))
