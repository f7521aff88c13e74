"""One self-contained HTML page: a header, sections and a footer, from the templates beside this file.

A laboratory has templates of its own in the folder `templates` of its package; they extend `page.html.j2` and take
macros from `blocks.html.j2`. Text is escaped. Only `Markup`, which macros and `Table.to_html` return, is taken as HTML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import hybridtron
from hybridtron.reporting import numbers
from hybridtron.reporting.pictures import PIXELS_PER_INCH


def figure(png: bytes, alt: str) -> Markup:
    """Render a picture inside the page; `alt` describes it to those who do not see it."""
    inches = int.from_bytes(png[16:20]) / PIXELS_PER_INCH  # the width in a PNG's header
    return blocks.figure(base64.b64encode(png).decode(), alt, f"{inches:g}")


def anchor(title: str) -> str:
    """Return the words of a title as an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def one_line(text: Markup) -> Markup:
    """Return text without line breaks and repeated blanks."""
    return Markup(" ").join(map(Markup, text.split()))


def raise_exponents(text: str) -> Markup:
    """Escape text and raise its exponents: N^0.3, C^(a+b)."""
    return Markup(re.sub(r"\^(-?\d+(?:\.\d+)?|-?\w+|\([^()]*\))", r"<sup>\1</sup>", str(Markup.escape(text))))


@cache
def environment(package: str) -> Environment:
    """Return what renders the templates of a package, with those of this one and filters for numbers."""
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "hybridtron.reporting"))]
    made = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("decimal", "decimals", "duration", "grouped", "html_number", "interval", "plural", "significant"):
        made.filters[name] = getattr(numbers, name)
    made.filters |= {function.__name__: function for function in (anchor, figure, one_line, raise_exponents)}
    made.globals["version"] = hybridtron.__version__
    return made


def render(package: str, template: str, **content: Any) -> str:
    """Render a template of the package."""
    return environment(package).get_template(template).render(content)


def render_text(package: str, template: str, **content: Any) -> str:
    """Render a template as plain text, for a terminal, without an empty line at its end."""
    return Markup(render(package, template, **content)).unescape().rstrip("\n")


def macros(package: str, template: str) -> Any:
    """Return a template's macros, which return Markup; `.unescape()` makes it plain text."""
    return environment(package).get_template(template).module


blocks = macros("hybridtron.reporting", "blocks.html.j2")  # header, paragraph, listing, chip, code, ...


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Join blocks, or texts, which are escaped."""
    return Markup(separator).join(parts)
