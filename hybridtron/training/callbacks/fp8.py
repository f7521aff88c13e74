"""fp8.jsonl and fp8.png: what rounding to FP8 costs each linear."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybridtron.files import replace_file
from hybridtron.training.callbacks.base import Row, TrainContext
from hybridtron.training.callbacks.metrics import MetricsFile
from hybridtron.training.callbacks.plot import RowsPlot

ROLES = {"x": "activations", "weight": "weights", "grad": "gradients"}  # operands of a linear
MEASURES = {"amax": "largest value (log10)", "saturated": "saturated (%)", "flushed": "became zero (%)"}
MOST_LABELS = 40  # of linears beside a picture


class FP8File(MetricsFile):
    """Append a row per step whose FP8 statistics were collected: for each linear and operand amax, null where it is
    not finite, and the shares of saturated values and of values that became zero."""

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Append the row of a step."""
        if context.fp8_statistics is not None:
            linears = {name: _finite(operands) for name, operands in context.fp8_statistics.items()}
            self._append({"step": context.state.step, "linears": linears})


def _finite(operands: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        role: {key: value if math.isfinite(value) else None for key, value in measured.items()}
        for role, measured in operands.items()
    }


class FP8Plot(RowsPlot):
    """Draw the rows of fp8.jsonl."""

    def __init__(self, rows_file: Path, file: Path) -> None:
        super().__init__(rows_file, file, plot_fp8)


def plot_fp8(rows: Iterable[Row], file: Path, title: str) -> None:
    """Draw a heat map of linears against logged steps for each operand and measure."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if isinstance(row.get("linears"), dict)]
    if not rows:
        return
    names = list(rows[-1]["linears"])
    figure = Figure(figsize=(12, 3.5 + 0.45 * min(len(names), MOST_LABELS)), dpi=120, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(MEASURES), len(ROLES), sharex=True, sharey=True, squeeze=False)
    for line, (measure, measure_label) in zip(grid, MEASURES.items(), strict=True):
        tables = {role: [[_value(row, name, role, measure) for row in rows] for name in names] for role in ROLES}
        low, high = _range(measure, tables)
        for axes, (role, role_label) in zip(line, ROLES.items(), strict=True):
            bounds = (low, high) if measure != "amax" else _range(measure, {role: tables[role]})
            image = axes.imshow(
                tables[role], aspect="auto", interpolation="nearest", cmap="viridis", vmin=bounds[0], vmax=bounds[1]
            )
            axes.set_title(f"{role_label}: {measure_label}", fontsize=9)
            figure.colorbar(image, ax=axes)
    _label(grid, names, [row["step"] for row in rows])
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(file, picture.getvalue())


def _value(row: Row, name: str, role: str, measure: str) -> float:
    """Return a measure as it is drawn; NaN, which stays blank, where there is none."""
    try:
        value = row["linears"][name][role][measure]
    except (KeyError, TypeError):
        return math.nan
    if not isinstance(value, int | float):
        return math.nan
    if measure == "amax":
        return math.log10(value) if value > 0 else math.nan
    return 100 * value


def _range(measure: str, tables: dict[str, list[list[float]]]) -> tuple[float, float]:
    """Return the ends of a colour scale; shares begin at 0, and end at 1 % at least."""
    values = [value for table in tables.values() for line in table for value in line if math.isfinite(value)]
    if measure != "amax":
        return 0.0, max([1.0, *values])
    return min(values, default=0.0), max(values, default=1.0)


def _label(grid: Any, names: list[str], steps: list[int]) -> None:
    """Write linears beside the first column and steps under the last row, as many as fit."""
    every = -(-len(names) // MOST_LABELS)
    ticks = range(0, len(names), every)
    for line in grid:
        line[0].set_yticks(ticks, [_short(names[i]) for i in ticks], fontsize=6)
    some = range(0, len(steps), max(1, len(steps) // 5))
    for axes in grid[-1]:
        axes.set_xticks(some, [steps[i] for i in some])
        axes.set_xlabel("step")


def _short(name: str) -> str:
    """Shorten layers.3.mixer.out_proj to 3 out_proj."""
    _, layer, _, part = name.split(".", 3)
    return f"{layer} {part}"
