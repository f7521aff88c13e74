"""Composer (arXiv 2510.00379): search small architectures, aggregate them, grow the result; see docs/composer.md.

nas/        the search: its config, space, evaluators, record on disk, workers and the vote of an aggregator
engines/    which patterns to try next: random, exhaustive, regularised evolution, Bayesian
grow/       stretch or stack a small pattern to the size of a target
report/     progress in the terminal, tables, pictures and the page
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Outcome": "report.outcome",
    "Scaled": "grow.scale",
    "SearchConfig": "nas.config",
    "SearchFailed": "nas.worker",
    "scale": "grow.scale",
    "search": "nas.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
