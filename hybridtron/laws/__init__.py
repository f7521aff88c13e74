"""Scaling laws: runs in, a law with honest intervals out.

`read_runs` turns a table or run folders into `Runs`; `fit(law, runs, settings)` fits the law called `law` (`LAWS`
lists them) and returns a `Fit`. `plots.draw` draws its curves, `report.html_report` writes its page, and
`publish.publish` puts everything into a folder.
"""

from __future__ import annotations

from dataclasses import replace

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.data.read import read_runs
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Series, Settings
from hybridtron.laws.families.registry import LAWS
from hybridtron.laws.fitting.checks import check, setting_warnings, unit_warnings

__all__ = ["LAWS", "Fit", "Law", "Runs", "Series", "Settings", "fit", "read_runs"]


FREE = "not identified: "  # begins a warning about what the data leave open


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
    free = [warning.removeprefix(FREE) for warning in result.warnings if warning.startswith(FREE)]
    first = [f"These data do not determine all of the law: {'; '.join(free)}."] if free else []
    return replace(
        result,
        warnings=unit_warnings(runs) + setting_warnings(LAWS[law], settings) + result.warnings,
        verdict=first + result.verdict,
    )
