"""A search as one HTML page that needs nothing else, with its numbers and pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from hybridtron import __version__
from hybridtron.composer.nas.progress import Step
from hybridtron.composer.report import columns
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.plots import draw, votes_name
from hybridtron.composer.report.statistics import Effort, read_effort
from hybridtron.composer.report.tables import html_table
from hybridtron.composer.report.wording import (
    constraints,
    course,
    next_command,
    notation,
    pattern_text,
    rule_sentences,
    surrogate_sentence,
    ties,
    verdict,
    voters,
    warnings,
)
from hybridtron.config.load import dump
from hybridtron.reporting.numbers import duration, plural
from hybridtron.reporting.page import figure, page, section

NUMBERS = (
    "th.num, td.num { text-align:right; } pre { overflow-x:auto; white-space:pre-wrap; font-size:.88rem; } "
    "li { margin:.2rem 0; }"
)
NO_SURROGATE = "Not drawn: it needs BoTorch (pip install 'hybridtron[search]') and four different scores."
FRONT = "No evaluated pattern beats those of the front in score without costing more."


def write_page(outcome: Outcome, folder: Path) -> Path:
    """report.html, result.json and the pictures, in the search's folder; returns the page."""
    effort = read_effort(outcome, folder)
    images = draw(outcome, effort.engines)
    for name, png in images.items():
        (folder / name).write_bytes(png)
    (folder / "result.json").write_text(json.dumps(outcome.as_json(), indent=2) + "\n")
    written = folder / "report.html"
    written.write_text(html_page(outcome, effort, images))
    return written


def html_page(outcome: Outcome, effort: Effort, images: Mapping[str, bytes]) -> str:
    """The page. `images` are PNG by file name, as `plots.draw` returns them."""
    config, steps = outcome.search.config, outcome.progress.steps
    several = outcome.progress.total_steps > 1
    sections = [
        _verdict(outcome),
        section("Pareto front", _note(FRONT) + _figure("pareto.png", images) + html_table(columns.front(outcome)))
        if outcome.front
        else "",
        section("Steps", html_table(columns.steps(outcome))) if several else "",
        *(_step(outcome, step, effort, images) for step in steps),
        section("Course of the search", _figure("regret.png", images)),
        section("Surrogate, leave one out", _surrogate(outcome, effort, images)),
        section("Failed patterns", html_table(columns.failures(outcome, effort))) if _failed(outcome) else "",
        section("Every evaluation", _everything(outcome, effort)),
        section("Settings", _folded("The config of this search", f"<pre>{escape(dump(config))}</pre>")),
    ]
    beside = "the same numbers are in result.json, every evaluation in evaluations.jsonl, beside this page"
    return page(config.name, _header(outcome, effort), sections, beside, style=NUMBERS)


def _failed(outcome: Outcome) -> int:
    return sum(len(step.failed) for step in outcome.progress.steps)


def _header(outcome: Outcome, effort: Effort) -> str:
    config, space = outcome.search.config, outcome.search.config.space.space()
    limits = constraints(config.space)
    chips = [f"{_failed(outcome)} failed"] if _failed(outcome) else []
    chips += [] if outcome.progress.is_complete else ["not finished"]
    counts = effort.engine_counts
    engines = ", ".join(name if len(counts) == 1 else f"{name} {count:,}" for name, count in counts.items())
    total = sum(effort.seconds.values())
    each = f"{duration(total / max(1, len(effort.seconds)))} a pattern, {duration(total)} in all"
    facts = [
        course(outcome),
        f"{plural(len(config.seeds), 'seed')} each",
        f"engine{'s' * (len(counts) > 1)} {engines}",
        config.methodology.type.replace("_", " "),
        f"{each}, by {plural(effort.workers, 'worker')}",
        *([f"{effort.last:%Y-%m-%d %H:%M} UTC"] if effort.last else []),
        f"hybridtron {__version__}",
    ]
    return (
        f'<header><p class="eyebrow">Architecture search</p><h1>{escape(config.name)}</h1>'
        f'<p class="formula">{plural(space.layers, "layer")} of {escape(", ".join(space.blocks))}: '
        f"{plural(space.size, 'pattern')}{escape('; ' + ', '.join(limits) if limits else '')}</p>"
        f'<p class="source">{escape(" · ".join(facts))}'
        + "".join(f' <span class="chip warn">{escape(chip)}</span>' for chip in chips)
        + "</p></header>"
    )


def _verdict(outcome: Outcome) -> str:
    context, chosen = outcome.search.config.aggregator.context, outcome.aggregate.pattern
    letters = notation(outcome.step.space, chosen)
    lead = f"<b>{escape(outcome.text(chosen))}</b>" + (f" ({escape(letters)})" if letters else "")
    told = [f"The vote N_{context} of {voters(outcome)}. {verdict(outcome)}"]
    if not outcome.progress.is_complete:
        told.append("The search is not finished: this is what it has found so far.")
    alarms = "".join(f'<p><span class="chip warn">note</span> {escape(line)}</p>' for line in warnings(outcome))
    command, about = next_command(outcome)
    vote = (
        f'<p class="lead">{lead}</p>'
        + _paragraphs([*told, *filter(None, [ties(outcome.step)])])
        + alarms
        + f"<h3>Next</h3><pre>{escape(command)}</pre>{_note(about)}"
    )
    if not outcome.front:
        return f'<section class="verdict" id="verdict"><h2>Result</h2>{vote}</section>'
    count = len(outcome.front)
    many = count > columns.FRONT_SHOWN
    shown = f", {columns.FRONT_SHOWN} of them here, all below" if many else ""
    return (
        f'<section class="verdict" id="verdict"><h2>Result</h2><p class="lead">A Pareto front of '
        f"<b>{plural(count, 'pattern')}</b>{shown}</p>{_note(FRONT)}"
        f"{html_table(columns.front(outcome, columns.FRONT_SHOWN))}<h3>By score alone, whatever it costs</h3>{vote}"
        "</section>"
    )


def _step(outcome: Outcome, step: Step, effort: Effort, images: Mapping[str, bytes]) -> str:
    """What was found in a step; in a section of its own where there are several."""
    name, alone = votes_name(outcome, step), outcome.progress.total_steps == 1
    parts = {
        "What each rule would return": (_sentences(outcome) if step.number == 0 else "")
        + html_table(columns.rules(outcome, step))
        + "<h3>Clusters of scores</h3>"
        + html_table(columns.clusters(step)),
        "Best patterns": html_table(columns.best(outcome, step, effort)),
        "Vote per position": (_note(ties(step) or "") + _figure(name, images)) if name in images else "",
    }
    if alone:
        return "\n".join(section(title, body) for title, body in parts.items())
    found = f"It handed on {pattern_text(step.space, step.found)}." if step.found else "It has not handed anything on."
    start = f"{plural(len(step.finished), 'pattern')} evaluated of {step.space.size:,} possible"
    if step.number:
        start += f" around {pattern_text(outcome.progress.steps[step.number - 1].space, _handed(outcome, step))}"
    body = "".join(f"<h3>{title}</h3>{part}" for title, part in parts.items() if part)
    return section(f"Step {step.number + 1}: {plural(step.space.layers, 'layer')}", _note(f"{start}. {found}") + body)


def _handed(outcome: Outcome, step: Step) -> tuple[int, ...]:
    return outcome.progress.steps[step.number - 1].found or ()


def _sentences(outcome: Outcome) -> str:
    return '<ul class="note">' + "".join(f"<li>{escape(line)}</li>" for line in rule_sentences(outcome)) + "</ul>"


def _surrogate(outcome: Outcome, effort: Effort, images: Mapping[str, bytes]) -> str:
    fit = outcome.surrogate
    if fit is None:
        return f"<p>{escape(NO_SURROGATE)}</p>"
    of = f"Of step {outcome.step.number + 1}. " if outcome.progress.total_steps > 1 else ""
    if len(fit.scores) < len(outcome.observations):
        of += f"Of {len(outcome.observations):,} evaluations, the last {len(fit.scores):,}. "
    return _note(of + surrogate_sentence(fit.correlation, set(effort.engine_counts))) + _figure("surrogate.png", images)


def _everything(outcome: Outcome, effort: Effort) -> str:
    return "".join(
        _folded(
            plural(len(step.finished), "pattern")
            + (f" of step {step.number + 1}" if outcome.progress.total_steps > 1 else ""),
            html_table(columns.everything(outcome, step, effort)),
        )
        for step in outcome.progress.steps
    )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _figure(name: str, images: Mapping[str, bytes]) -> str:
    return figure(images[name], name)
