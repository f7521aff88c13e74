"""A search as one HTML page that needs nothing else, with its numbers and pictures beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hybridtron import __version__
from hybridtron.composer.outcome import Outcome
from hybridtron.composer.plots import draw
from hybridtron.laws.report import number
from hybridtron.laws.report_style import STYLE

CAPTIONS = {
    "votes.png": "Position by position, the blocks of the patterns that vote.",
    "regret.png": "How soon the search found what it found.",
    "surrogate.png": "A Gaussian process predicts every score from all others: near the diagonal, the search can be "
    "trusted to have known where to look.",
    "pareto.png": "No evaluated pattern beats those of the front in both score and cost.",
}


def write_page(outcome: Outcome, folder: Path) -> Path:
    """report.html, result.json and the pictures, in the search's folder; returns the page."""
    images = draw(outcome)
    for name, png in images.items():
        (folder / name).write_bytes(png)
    (folder / "result.json").write_text(json.dumps(outcome.as_json(), indent=2) + "\n")
    page = folder / "report.html"
    page.write_text(html_page(outcome, images))
    return page


def html_page(outcome: Outcome, images: Mapping[str, bytes]) -> str:
    """The page. `images` are PNG by file name, as `plots.draw` returns them."""
    config, plain = outcome.search.config, outcome.as_json()
    sections = [
        _verdict(outcome),
        _section("What each rule would return", _table(plain["rules"]) + _clusters(outcome)),
        _section("Best patterns", _table(plain["best"])),
        _section("Vote per position", _figure("votes.png", images)),
        _section("Course of the search", _figure("regret.png", images)),
        _section(
            "Surrogate, leave one out",
            _figure("surrogate.png", images) if outcome.surrogate else f"<p>{_NO_SURROGATE}</p>",
        ),
        _section("Pareto front", _figure("pareto.png", images) + _table(plain["pareto"])) if plain["pareto"] else "",
        _section("Steps", _table(_steps(outcome))) if outcome.progress.total_steps > 1 else "",
        _section("Settings", f"<pre>{escape(json.dumps(config.model_dump(mode='json'), indent=2))}</pre>"),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(config.name)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{_header(outcome)}\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>hybridtron {escape(__version__)} · the same numbers are in result.json, every evaluation in "
        "evaluations.jsonl, beside this page</footer>\n</main></body></html>\n"
    )


_NO_SURROGATE = "Not drawn: it needs BoTorch (pip install 'hybridtron[search]') and four different scores."


def _header(outcome: Outcome) -> str:
    config, space = outcome.search.config, outcome.step.space
    failed = f' <span class="chip warn">{len(outcome.step.failed)} failed</span>' if outcome.step.failed else ""
    return (
        f'<header><p class="eyebrow">Architecture search</p><h1>{escape(config.name)}</h1>'
        f'<p class="formula">{space.layers} layers of {escape(", ".join(space.blocks))}: {number(space.size)} '
        f"patterns</p>"
        f'<p class="source">{len(outcome.observations)} evaluated with {len(config.seeds)} seed'
        f"{'' if len(config.seeds) == 1 else 's'} each · engine {escape(config.engine.type)} · "
        f"{escape(config.methodology.type.replace('_', ' '))}{failed}</p></header>"
    )


def _verdict(outcome: Outcome) -> str:
    context, chosen = outcome.search.config.aggregator.context, outcome.aggregate.pattern
    score, best = outcome.score_of(chosen), max(o.score for o in outcome.observations)
    told = "it was not among those evaluated" if score is None else f"its score is {number(score)}"
    tied = sum(vote.tied for vote in outcome.aggregate.votes)
    ties = f" {tied} of {len(outcome.aggregate.votes)} positions were ties." if tied else ""
    return (
        '<section class="verdict" id="verdict"><h2>Result</h2>'
        f'<p class="lead"><b>{escape(outcome.text(chosen))}</b></p><p>The vote N_{context} of the best cluster; '
        f"{told}, the best single score is {number(best)} ({escape(outcome.search.evaluator.quantity)}).{ties}"
        "</p></section>"
    )


def _clusters(outcome: Outcome) -> str:
    rows = [
        {"cluster": i, "patterns": len(c), "lowest score": min(c), "highest score": max(c)}
        for i, c in enumerate(outcome.aggregate.clusters, start=1)
    ]
    return "<h3>Clusters of scores</h3>" + _table(rows)


def _steps(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "step": step.number + 1,
            "layers": step.space.layers,
            "evaluated": len(step.finished),
            "best score": max((o.score for o in step.finished), default=None),
            "handed on": " ".join(step.space.names(step.found)) if step.found else None,
        }
        for step in outcome.progress.steps
    ]


def _section(title: str, body: str) -> str:
    return f'<section id="{title.lower().replace(" ", "-").replace(",", "")}"><h2>{escape(title)}</h2>{body}</section>'


def _figure(name: str, images: Mapping[str, bytes]) -> str:
    data = base64.b64encode(images[name]).decode()
    caption = escape(CAPTIONS[name])
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
    return f'<p class="note">{caption}</p><figure>{image}</figure>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{number(cell, 5)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
