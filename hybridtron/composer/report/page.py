"""A search as one self-contained HTML page, with its numbers and pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from hybridtron import __version__
from hybridtron.composer.nas.progress import Step
from hybridtron.composer.report import sentences, tables
from hybridtron.composer.report.evaluations import Evaluations, read_evaluations
from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.report.plots import draw, votes_name
from hybridtron.config.load import dump
from hybridtron.reporting.numbers import duration, plural
from hybridtron.reporting.page import blocks, figure, join, page, section, verdict

NO_SURROGATE = "Not drawn: it needs BoTorch (pip install 'hybridtron[search]') and four different scores."
FRONT = "No evaluated pattern beats those of the front in score without costing more."


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write report.html, result.json and the pictures to the search's folder; return the page."""
    evaluations = read_evaluations(outcome, folder)
    images = draw(outcome, evaluations.engines)
    for name, png in images.items():
        (folder / name).write_bytes(png)
    (folder / "result.json").write_text(json.dumps(outcome.as_json(), indent=2) + "\n")
    written = folder / "report.html"
    written.write_text(html_page(outcome, evaluations, images))
    return written


def html_page(outcome: Outcome, evaluations: Evaluations, images: Mapping[str, bytes]) -> str:
    """Return the page. `images` are PNG by file name, as `plots.draw` returns them."""
    config, steps = outcome.search.config, outcome.progress.steps
    several = outcome.progress.total_steps > 1
    pictures = {name: figure(png, name) for name, png in images.items()}
    front = [pictures["pareto.png"], tables.front(outcome).to_html()] if outcome.front else []
    settings = blocks.folded("The config of this search", blocks.code(dump(config)))
    sections = [
        _verdict(outcome),
        section("Pareto front", *front, note=FRONT),
        section("Steps", tables.steps(outcome).to_html()) if several else Markup(),
        *(_step(outcome, step, evaluations, pictures) for step in steps),
        section("Course of the search", pictures["regret.png"]),
        section("Surrogate, leave one out", *_surrogate(outcome, evaluations, pictures)),
        section("Failed patterns", tables.failures(outcome, evaluations).to_html()),
        section("Every evaluation", *(_every_evaluation(outcome, step, evaluations) for step in steps)),
        section("Settings", settings),
    ]
    beside = "the same numbers are in result.json, every evaluation in evaluations.jsonl, beside this page"
    return page(config.name, _header(outcome, evaluations), sections, beside)


def _header(outcome: Outcome, evaluations: Evaluations) -> Markup:
    config, space = outcome.search.config, outcome.search.config.space.space()
    failed = sum(len(step.failed) for step in outcome.progress.steps)
    chips = ([f"{failed} failed"] if failed else []) + ([] if outcome.progress.is_complete else ["not finished"])
    counts = evaluations.engine_counts
    engines = ", ".join(name if len(counts) == 1 else f"{name} {count:,}" for name, count in counts.items())
    total = sum(evaluations.seconds.values())
    each = f"{duration(total / max(1, len(evaluations.seconds)))} a pattern, {duration(total)} in all"
    facts = [
        sentences.count_evaluated(outcome),
        f"{plural(len(config.seeds), 'seed')} each",
        f"engine{'s' * (len(counts) > 1)} {engines}",
        config.methodology.type.replace("_", " "),
        f"{each}, by {plural(evaluations.workers, 'worker')}",
        *([f"{evaluations.last:%Y-%m-%d %H:%M} UTC"] if evaluations.last else []),
        f"hybridtron {__version__}",
    ]
    size = f"{plural(space.layers, 'layer')} of {', '.join(space.blocks)}: {plural(space.size, 'pattern')}"
    size += "; " * bool(sentences.constraints(config.space)) + ", ".join(sentences.constraints(config.space))
    return blocks.header("Architecture search", config.name, size, " · ".join(facts), map(blocks.chip, chips))


def _verdict(outcome: Outcome) -> Markup:
    context, chosen = outcome.search.config.aggregator.context, outcome.aggregate.pattern
    letters = sentences.notation(outcome.step.space, chosen)
    lead = Markup("<b>{}</b>{}").format(outcome.text(chosen), f" ({letters})" if letters else "")
    found = [f"The vote N_{context} of {sentences.voters(outcome)}. {sentences.verdict(outcome)}"]
    if not outcome.progress.is_complete:
        found.append("The search is not finished: this is what it has found so far.")
    command, about = sentences.next_command(outcome)
    vote = join([
        *map(blocks.paragraph, [*found, sentences.ties(outcome.step)]),
        *(blocks.paragraph(blocks.chip("note") + " " + line) for line in sentences.warnings(outcome)),
        blocks.heading("Next"), blocks.code(command), blocks.paragraph(about, "note"),
    ])  # fmt: skip
    if not outcome.front:
        return verdict([lead], (), "Result", vote)
    count, most = len(outcome.front), tables.FRONT_SHOWN
    shown = f", {most} of them here, all below" if count > most else ""
    return verdict(
        [Markup("A Pareto front of <b>{}</b>{}").format(plural(count, "pattern"), shown)],
        (),
        "Result",
        blocks.paragraph(FRONT, "note"),
        tables.front(outcome, most).to_html(),
        blocks.heading("By score alone, at any cost"),
        blocks.paragraph(lead, "lead"),
        vote,
    )


def _step(outcome: Outcome, step: Step, evaluations: Evaluations, pictures: Mapping[str, Markup]) -> Markup:
    """Render what was found in a step; in a section of its own where there are several."""
    votes = pictures.get(votes_name(outcome, step))
    parts = {
        "What each rule would return": [
            blocks.listing(sentences.rule_sentences(outcome), "note") if step.number == 0 else "",
            tables.rules(outcome, step).to_html(),
            blocks.heading("Clusters of scores"),
            tables.clusters(step).to_html(),
        ],
        "Best patterns": [tables.best(outcome, step, evaluations).to_html()],
        "Vote per position": [blocks.paragraph(sentences.ties(step), "note"), votes] if votes else [],
    }
    if outcome.progress.total_steps == 1:
        return join(section(title, *body) for title, body in parts.items())
    end = (
        f"It handed on {sentences.pattern_text(step.space, step.found)}."
        if step.found
        else "It has not handed anything on."
    )
    start = f"{plural(len(step.finished), 'pattern')} evaluated of {step.space.size:,} possible"
    if step.number:
        before = outcome.progress.steps[step.number - 1]
        start += f" around {sentences.pattern_text(before.space, before.found or ())}"
    body = join(join([blocks.heading(title), *part]) for title, part in parts.items() if part)
    return section(f"Step {step.number + 1}: {plural(step.space.layers, 'layer')}", body, note=f"{start}. {end}")


def _surrogate(outcome: Outcome, evaluations: Evaluations, pictures: Mapping[str, Markup]) -> Sequence[Markup]:
    fit = outcome.surrogate
    if fit is None:
        return [blocks.paragraph(NO_SURROGATE)]
    scope = f"Of step {outcome.step.number + 1}. " if outcome.progress.total_steps > 1 else ""
    if len(fit.scores) < len(outcome.observations):
        scope += f"Of {len(outcome.observations):,} evaluations, the last {len(fit.scores):,}. "
    sentence = sentences.surrogate_sentence(fit.correlation, set(evaluations.engine_counts))
    return [blocks.paragraph(scope + sentence, "note"), pictures["surrogate.png"]]


def _every_evaluation(outcome: Outcome, step: Step, evaluations: Evaluations) -> Markup:
    which = f" of step {step.number + 1}" if outcome.progress.total_steps > 1 else ""
    table = tables.everything(outcome, step, evaluations).to_html()
    return blocks.folded(plural(len(step.finished), "pattern") + which, table)
