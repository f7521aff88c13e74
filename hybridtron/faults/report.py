"""The table of a campaign: one row for each kind."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybridtron.faults.outcome import LOUD, NOT_FIRED, RECOVERED, WENT_ON, WRONG, Result
from hybridtron.faults.plan import KINDS
from hybridtron.reporting.table import Table

LABELS = (
    "kind", "faults", "recovered", "went on", "failed loudly", "WRONG", "detection s, median (max)",
    "restart to first step s, median (max)", "lost steps, median (max)", "lost of saved",
)  # fmt: skip


def table_of(results: Sequence[Result]) -> Table:
    """Return the table of results by kind, with a last row for all."""
    fired = [result for result in results if result.outcome != NOT_FIRED]
    kinds = [kind for kind in KINDS if any(result.kind == kind for result in fired)]
    rows = [_row(kind, [result for result in fired if result.kind == kind]) for kind in kinds]
    return Table.from_rows(LABELS, [*rows, _row("all", fired)], right=LABELS[1:])


def _row(kind: str, results: Sequence[Result]) -> tuple[str, ...]:
    outcomes = [result.outcome for result in results]
    return (
        kind,
        str(len(results)),
        *(str(outcomes.count(outcome)) for outcome in (RECOVERED, WENT_ON, LOUD, WRONG)),
        _spread(result.detection for result in results),
        _spread(result.restart for result in results),
        _spread((result.lost_steps for result in results), digits=0),
        str(max((result.lost_saved or 0 for result in results), default=0)),
    )


def _spread(values: Iterable[float | None], digits: int = 1) -> str:
    """Return the median and the largest of the values that are known."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.{digits}f} ({max(known):.{digits}f})" if known else "-"


def as_json(results: Sequence[Result], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a campaign as JSON values."""
    from hybridtron.faults.outcome import as_row

    wrong = sum(result.outcome == WRONG for result in results)
    fired = sum(result.outcome != NOT_FIRED for result in results)
    return {**conditions, "injected": fired, "wrong": wrong, "faults": [as_row(result) for result in results]}
