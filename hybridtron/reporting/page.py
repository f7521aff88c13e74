"""One HTML page that needs nothing else: header, sections, footer; pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape

import hybridtron
from hybridtron.reporting.style import STYLE


def page(title: str, header: str, sections: Iterable[str], beside: str, *, style: str = "") -> str:
    """The page. `header` and `sections` are HTML, empty sections are left out; `beside` says in the footer what lies
    beside the page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head>\n<body><main>\n{header}\n"
        + "\n".join(filter(None, sections))
        + f"\n<footer>hybridtron {escape(hybridtron.__version__)} · {escape(beside)}</footer>\n</main></body></html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """HTML under a heading, which is its anchor too; nothing where there is no HTML."""
    if not body:
        return ""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{explained}{body}</section>'


def figure(png: bytes, words: str) -> str:
    """A picture inside the page; `words` for those who do not see it."""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(words)}"></figure>'
