"""Scaling laws: runs in, a law with honest intervals out.

`fit(law, runs, settings)` fits the law called `law`; `LAWS` lists them. A `Runs` is a table, `Settings` what may be
chosen, `Fit` the answer.
"""

from __future__ import annotations

from dataclasses import replace

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.checks import check, unit_warnings
from hybridtron.laws.law import Fit, Law, Series, Settings
from hybridtron.laws.registry import LAWS
from hybridtron.laws.runs import Runs

__all__ = ["LAWS", "Fit", "Law", "Runs", "Series", "Settings", "fit"]


def fit(law: str, runs: Runs, settings: Settings | None = None) -> Fit:
    """Fit one law to runs.

    Args:
        law: a name in `LAWS`.
        runs: rows with the columns that the law declares, in canonical names and units.
        settings: None takes the defaults.

    Raises:
        UserError: an unknown law or option, a missing column, a value that the law cannot take (named by its line),
            or data from which the law cannot be fitted at all.
    """
    if law not in LAWS:
        raise UserError(f"no law {law!r}; expected {one_of(law, LAWS)}")
    settings = settings or Settings()
    check(LAWS[law], runs, settings)
    result = LAWS[law].fit(runs, settings)
    return replace(result, warnings=unit_warnings(runs) + result.warnings)
