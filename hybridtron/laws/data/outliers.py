"""Rows that a column of the table flags as outliers."""

from __future__ import annotations

import numpy as np

from hybridtron.laws.data.runs import Runs

OUTLIERS = (None, "column that flags outliers, to report how far the answer moves without them")


def outlier_flags(runs: Runs, name: str | None) -> tuple[str, np.ndarray] | None:
    """Return the name of the column that marks outliers, `name` or one named *outlier*, and its flags [n]; or None."""
    if name is None:
        name = next((column for column in runs.columns if "outlier" in column.lower()), None)
    if name is None:
        return None
    values = runs[name]
    if values.dtype == object:
        return name, np.array([str(value).strip().lower() in ("true", "1", "yes") for value in values])
    return name, values != 0
