"""A search from its config to its page, as one of any number of workers."""

from __future__ import annotations

from pathlib import Path

from hybridtron.composer.config import SearchConfig
from hybridtron.composer.outcome import Outcome, read_outcome
from hybridtron.composer.page import write_page
from hybridtron.composer.search import prepare, work
from hybridtron.composer.store import Store
from hybridtron.composer.view import View


def run_search(config: SearchConfig) -> tuple[Outcome, Path]:
    """Evaluate what is left of the search in its folder, then write its page; returns both.

    Raises UserError, before anything is written, where the config does not fit its files or the folder's search.
    """
    search = prepare(config)
    store = Store(config.search_folder, search.identity())
    view = View(config.name)
    try:
        progress = work(search, store, view.watch)
        outcome = read_outcome(search, progress)
        with store.transaction():  # one worker at a time writes the page
            page = write_page(outcome, config.search_folder)
    finally:
        view.close()
        store.close()
    return outcome, page
