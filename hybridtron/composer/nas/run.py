"""Run a search from its config to its page, as one of any number of workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from hybridtron.composer.nas.config import OutsideConfig, SearchConfig
from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.nas.store import EVALUATIONS, Store
from hybridtron.composer.nas.worker import Search, current_progress, prepare, work
from hybridtron.composer.report import summary  # noqa: F401  # registers how an outcome is printed
from hybridtron.composer.report.outcome import Outcome, read_outcome
from hybridtron.composer.report.page import write_page
from hybridtron.composer.votes.vote import vote
from hybridtron.config.load import load
from hybridtron.errors import UserError

Watch = Callable[[Progress], None]


def search(
    config: str | os.PathLike[str] | Mapping[str, Any], *overrides: str, on_progress: Watch | None = None
) -> Outcome:
    """Search architectures as a config describes, or continue that search, and return what was found.

    Args:
        config: a YAML file, or a dict with its keys (docs/search.md).
        overrides: `key=value`, such as `evaluations=20`.
        on_progress: called with the state of the search whenever it may have changed.

    Raises:
        UserError: where the config does not fit its files or the search in its folder; nothing is written then.
        SearchFailed: where no pattern of a step has a finite score.
    """
    return run_search(load(config, overrides, SearchConfig), on_progress)[0]


def run_search(config: SearchConfig, on_progress: Watch | None = None) -> tuple[Outcome, Path]:
    """Evaluate what is left of the search in its folder, write its page, and return both; raises as `search` does."""
    prepared = prepare(config)
    if isinstance(config.evaluator, OutsideConfig):
        raise UserError(
            "evaluator.type outside: nothing is evaluated here; expected `hybridtron search ask CONFIG` for patterns, "
            "`hybridtron search tell CONFIG RESULTS` for their scores, or `report`"
        )
    with closing(Store(config.search_folder, prepared.identity())) as store:
        progress = work(prepared, store, on_progress or (lambda progress: None))
        return _write_page(prepared, store, progress)


def report_search(config: SearchConfig) -> tuple[Outcome, Path]:
    """Write the page of what is recorded so far, beside any workers.

    Raises UserError where there is no such search, or no pattern has a score yet.
    """
    folder = config.search_folder
    if not (folder / EVALUATIONS).is_file():
        raise UserError(f"search folder {folder}: holds no search; expected one that was started")
    prepared = prepare(config)
    with closing(Store(folder, prepared.identity())) as store:
        with store.locked() as rows:
            progress = current_progress(prepared, store, rows)
        while progress.steps and not progress.steps[-1].finished:
            progress.steps.pop()
        if not progress.steps:
            raise UserError(f"search folder {folder}: no pattern has a score yet; expected at least one")
        step = progress.steps[-1]
        if step.aggregate is None:  # of a step that goes on: nothing is elected yet
            step.aggregate = vote(config.aggregator, step.space, step.finished, step.noise)
        return _write_page(prepared, store, progress)


def _write_page(search: Search, store: Store, progress: Progress) -> tuple[Outcome, Path]:
    outcome = read_outcome(search, progress)
    with store.locked():  # one worker at a time writes the page
        return outcome, write_page(outcome, store.folder)
