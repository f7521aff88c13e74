"""A search from its config to its page, as one of any number of workers; the first of a job's tells of it."""

from __future__ import annotations

from pathlib import Path

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress, read_progress, vote
from hybridtron.composer.nas.store import EVALUATIONS, Store
from hybridtron.composer.nas.worker import Search, prepare, work
from hybridtron.composer.report.outcome import Outcome, read_outcome
from hybridtron.composer.report.page import write_page
from hybridtron.composer.report.progress_view import View
from hybridtron.distributed.environment import read_environment
from hybridtron.errors import UserError


def run_search(config: SearchConfig) -> tuple[Outcome, Path]:
    """Evaluate what is left of the search in its folder, then write its page; returns both.

    Raises UserError, before anything is written, where the config does not fit its files or the folder's search, and
    SearchFailed where no pattern of a step has a score.
    """
    search = prepare(config)
    store = Store(config.search_folder, search.identity())
    view = View(config.name, quiet=read_environment().rank > 0)
    try:
        progress = work(search, store, view.watch)
        return _written(search, store, progress)
    except KeyboardInterrupt:
        view.say("stopped; the same command goes on with what is recorded")
        raise
    finally:
        view.close()
        store.close()


def report_search(config: SearchConfig) -> tuple[Outcome, Path]:
    """Write the page of what is recorded so far, beside any workers.

    Raises UserError where there is no such search, or no pattern has a score yet.
    """
    folder = config.search_folder
    if not (folder / EVALUATIONS).is_file():
        raise UserError(f"search folder {folder}: holds no search; expected one that was started")
    search = prepare(config)
    store = Store(folder, search.identity())
    try:
        with store.transaction() as transaction:
            progress = read_progress(config, transaction.rows)
        while progress.steps and not progress.steps[-1].finished:
            progress.steps.pop()
        if not progress.steps:
            raise UserError(f"search folder {folder}: no pattern has a score yet; expected at least one")
        progress.steps[-1].aggregate = vote(config, progress.steps[-1])
        return _written(search, store, progress)
    finally:
        store.close()


def _written(search: Search, store: Store, progress: Progress) -> tuple[Outcome, Path]:
    outcome = read_outcome(search, progress)
    with store.transaction():  # one worker at a time writes the page
        return outcome, write_page(outcome, store.folder)
