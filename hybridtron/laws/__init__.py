"""Scaling laws: runs in, a law with honest intervals out.

`fit(law, data, **settings)` fits the law called `law` (`LAWS` lists them) to a data frame, a dict of arrays, CSV or
parquet files or run folders, and returns a `Fit`: parameters, intervals, verdict, warnings and predictions, and
`Fit.report(folder)` writes them with plots.

api.py           fit
keywords.py      what its keywords mean
law.py           what a law declares, and the settings of a fit
result.py        what a fit returns
checks.py        runs and settings that a law cannot take
families/        the laws
assumptions/     what a law takes for granted about a table
fitting/         the methods
report/          the verdict, the plots and the page
data/            tables, run folders and data frames as one type, Runs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.laws.api import find_law, fit
    from hybridtron.laws.data.read import read_runs
    from hybridtron.laws.data.runs import Runs
    from hybridtron.laws.families.registry import LAWS
    from hybridtron.laws.law import Law, Settings
    from hybridtron.laws.result import Fit, Series

__all__ = ["LAWS", "Fit", "Law", "Runs", "Series", "Settings", "find_law", "fit", "read_runs"]

__getattr__, __dir__ = lazy_exports(__name__, __file__)
