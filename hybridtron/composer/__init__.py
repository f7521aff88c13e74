"""Composer (arXiv 2510.00379): search small architectures, aggregate them, grow the result; see docs/composer.md.

nas/        the search: its config, space, evaluators, record on disk, workers and the vote of an aggregator
engines/    which patterns to try next: random, exhaustive, regularised evolution, Bayesian
grow/       stretch or stack a small pattern to the size of a target
transfer/   does the search's order hold in large: patterns grown at equal size, trained and ranked
report/     progress in the terminal, tables, pictures and the page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.composer.grow.scale import Scaled, scale
    from hybridtron.composer.nas.config import SearchConfig
    from hybridtron.composer.nas.driving import OpenSearch, open_search
    from hybridtron.composer.nas.run import search
    from hybridtron.composer.nas.worker import SearchFailed
    from hybridtron.composer.report.outcome import Outcome
    from hybridtron.composer.transfer.outcome import Transfer
    from hybridtron.composer.transfer.run import search_transfer

__all__ = [
    "OpenSearch",
    "Outcome",
    "Scaled",
    "SearchConfig",
    "SearchFailed",
    "Transfer",
    "open_search",
    "scale",
    "search",
    "search_transfer",
]

__getattr__, __dir__ = lazy_exports(__name__, __file__)
